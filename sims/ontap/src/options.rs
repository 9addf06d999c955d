//! What an array is made of and how it behaves.

use std::path::PathBuf;

/// Everything that can be set when a simulator starts. What is stored in the directory wins over names and sizes here.
#[derive(Debug, Clone)]
pub struct Options {
    /// State, disks and certificate; a directory that was used before brings the same array back.
    pub dir: PathBuf,
    /// The management address; port 0 picks one.
    pub listen: std::net::SocketAddr,
    pub version: [u32; 3],
    pub cluster: String,
    pub svms: Vec<String>,
    /// Name and size in bytes.
    pub aggregates: Vec<(String, u64)>,
    /// iSCSI interfaces of each SVM, one node each.
    pub interfaces: usize,
    pub accounts: Vec<Account>,
    /// Unknown query parameters and fields are refused.
    pub strict: bool,
    /// LUN creation and deletion are jobs too, as in the newest releases.
    pub lun_jobs: bool,
    /// Time that a job takes, in milliseconds.
    pub job_ms: u64,
    /// Time after which a finished job is forgotten, in milliseconds.
    pub job_expiry_ms: u64,
    /// Time that the block sharing of a LUN clone takes to complete, in milliseconds.
    pub split_ms: u64,
    /// While sharing is incomplete no FlexVol snapshot can be taken.
    pub refuse_snapshot_while_splitting: bool,
    /// A new LUN or snapshot is missing from answers for this long, in milliseconds.
    pub lag_ms: u64,
    /// LUN sizes are rounded up to a multiple of this, in bytes.
    pub lun_rounding: u64,
    pub luns_per_volume_max: usize,
    pub snapshots_per_volume_max: usize,
    pub volumes_max: usize,
    /// How often fullness of volumes is looked at, in milliseconds.
    pub space_ms: u64,
}

/// Who may call the API.
#[derive(Clone)]
pub struct Account {
    pub user: String,
    pub password: String,
    /// Confined to this SVM, as `vsadmin` is.
    pub svm: Option<String>,
    pub read_only: bool,
}

impl std::fmt::Debug for Account {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Account {{ user: {:?}, svm: {:?} }}", self.user, self.svm)
    }
}

impl Account {
    pub fn cluster(user: &str, password: &str) -> Account {
        Account { user: user.into(), password: password.into(), svm: None, read_only: false }
    }
}

impl Options {
    /// A small array that answers quickly: cluster account `admin`/`netapp1!`, SVM `svm1`, aggregates `aggr1`, `aggr2`.
    pub fn new(dir: impl Into<PathBuf>) -> Options {
        Options {
            dir: dir.into(),
            listen: std::net::SocketAddr::from(([127, 0, 0, 1], 0)),
            version: [9, 15, 1],
            cluster: "cluster1".into(),
            svms: vec!["svm1".into()],
            aggregates: vec![("aggr1".into(), 10 << 40), ("aggr2".into(), 10 << 40)],
            interfaces: 2,
            accounts: vec![
                Account::cluster("admin", "netapp1!"),
                Account { svm: Some("svm1".into()), ..Account::cluster("vsadmin", "netapp1!") },
            ],
            strict: false,
            lun_jobs: false,
            job_ms: 20,
            job_expiry_ms: 300_000,
            split_ms: 0,
            refuse_snapshot_while_splitting: true,
            lag_ms: 0,
            lun_rounding: 4096,
            luns_per_volume_max: 500,
            snapshots_per_volume_max: 1023,
            volumes_max: 1000,
            space_ms: 200,
        }
    }
}

//! Editions of Windows as `guest-get-osinfo` tells them.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::scenario::AgentVersion;

/// An edition; servers unless the name says otherwise.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Edition {
    #[serde(rename = "2008r2")]
    Server2008R2,
    #[serde(rename = "2012")]
    Server2012,
    #[serde(rename = "2012r2")]
    Server2012R2,
    #[serde(rename = "2016")]
    Server2016,
    #[serde(rename = "2019")]
    Server2019,
    #[serde(rename = "2022")]
    Server2022,
    #[serde(rename = "2025")]
    Server2025,
    #[serde(rename = "7")]
    Windows7,
    #[serde(rename = "10")]
    Windows10,
    #[serde(rename = "11")]
    Windows11,
}

/// What the system calls itself, and what the agent makes of it.
struct Names {
    kernel: &'static str,
    build: &'static str,
    version: &'static str,
    version_id: &'static str,
    pretty: &'static str,
    is_server: bool,
}

const fn names(
    kernel: &'static str,
    build: &'static str,
    version: &'static str,
    version_id: &'static str,
    pretty: &'static str,
    is_server: bool,
) -> Names {
    Names { kernel, build, version, version_id, pretty, is_server }
}

impl Edition {
    pub const ALL: [Edition; 10] = [
        Edition::Server2008R2,
        Edition::Server2012,
        Edition::Server2012R2,
        Edition::Server2016,
        Edition::Server2019,
        Edition::Server2022,
        Edition::Server2025,
        Edition::Windows7,
        Edition::Windows10,
        Edition::Windows11,
    ];

    fn names(self, agent: AgentVersion) -> Names {
        match self {
            Edition::Server2008R2 => {
                let pretty = "Windows Server 2008 R2 Standard";
                names("6.1", "7601", "Microsoft Windows Server 2008 R2", "2008r2", pretty, true)
            }
            Edition::Server2012 => {
                names("6.2", "9200", "Microsoft Windows Server 2012", "2012", "Windows Server 2012 Standard", true)
            }
            Edition::Server2012R2 => {
                let pretty = "Windows Server 2012 R2 Standard";
                names("6.3", "9600", "Microsoft Windows Server 2012 R2", "2012r2", pretty, true)
            }
            Edition::Server2016 => {
                names("10.0", "14393", "Microsoft Windows Server 2016", "2016", "Windows Server 2016 Standard", true)
            }
            Edition::Server2019 => {
                names("10.0", "17763", "Microsoft Windows Server 2019", "2019", "Windows Server 2019 Standard", true)
            }
            Edition::Server2022 => {
                names("10.0", "20348", "Microsoft Windows Server 2022", "2022", "Windows Server 2022 Standard", true)
            }
            // 7.2 is older than this system and takes it for the newest that it knows.
            Edition::Server2025 => match agent {
                AgentVersion::V7_2 => {
                    let pretty = "Windows Server 2025 Standard";
                    names("10.0", "26100", "Microsoft Windows Server 2022", "2022", pretty, true)
                }
                AgentVersion::V10_0 => {
                    let pretty = "Windows Server 2025 Standard";
                    names("10.0", "26100", "Microsoft Windows Server 2025", "2025", pretty, true)
                }
            },
            // The agent's table misses a comma here: the version is garbled and the version-id empty.
            Edition::Windows7 => names("6.1", "7601", "Microsoft Windows 77", "", "Windows 7 Professional", false),
            Edition::Windows10 => names("10.0", "19045", "Microsoft Windows 10", "10", "Windows 10 Pro", false),
            Edition::Windows11 => names("10.0", "22631", "Microsoft Windows 11", "11", "Windows 11 Pro", false),
        }
    }

    /// The answer to `guest-get-osinfo`.
    pub(crate) fn osinfo(self, agent: AgentVersion) -> Value {
        let names = self.names(agent);
        let variant = if names.is_server { "server" } else { "client" };
        json!({
            "id": "mswindows",
            "name": "Microsoft Windows",
            "pretty-name": names.pretty,
            "version": names.version,
            "version-id": names.version_id,
            "variant": variant,
            "variant-id": variant,
            "kernel-version": names.kernel,
            "kernel-release": names.build,
            "machine": "x86_64",
        })
    }
}

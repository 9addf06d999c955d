//! Finding out what there is: version, SVM, aggregates, iSCSI service, portals.

use tanada_driver::{DriverError, DriverErrorKind, DriverResult};

use super::Array;
use crate::config::Config;
use crate::error::{ArrayResult, sm};
use crate::http::Transport;
use crate::model::{Aggregate, AggregateSpace, BlockSpace, Cluster, Interface, IscsiService, Svm};
use crate::query::Query;
use crate::rest::{Patience, Rest};
use crate::tls;

/// LUN attributes and split status came with it.
const VERSION_MIN: (u32, u32, u32) = (9, 10, 1);
/// Since then there are arrays without FlexVols, and a field that tells.
const DISAGGREGATED_SINCE: (u32, u32, u32) = (9, 16, 1);

/// Logs in, and checks that the array is one that this driver can use.
pub async fn connect(config: &Config, patience: Patience) -> DriverResult<Array> {
    let invalid = |words| DriverError::new(DriverErrorKind::InvalidArgument, words);
    let tls = tls::client_config(&config.trust).map_err(invalid)?;
    let transport = Transport::new(&config.host, config.port, &config.username, config.password.expose(), tls)
        .map_err(|words| invalid(words).with_sm(sm::TARGET))?;
    let rest = Rest::new(transport, patience);
    check_version(&rest).await?;
    let svm = choose_svm(&rest, config.svm.as_deref()).await?;
    Ok(Array { rest, svm })
}

async fn check_version(rest: &Rest) -> DriverResult<()> {
    let cluster: Cluster = rest.get("/cluster", &Query::new().fields("name,version")).await?;
    let version = (cluster.version.generation, cluster.version.major, cluster.version.minor);
    let unfit = |words: String| DriverError::new(DriverErrorKind::Unsupported, words).with_sm(sm::VERSION);
    if version < VERSION_MIN {
        let (a, b, c) = version;
        return Err(unfit(format!("array {} runs ONTAP {a}.{b}.{c}; 9.10.1 or later is needed", cluster.name)));
    }
    if version >= DISAGGREGATED_SINCE {
        let query = Query::new().fields("san_optimized,disaggregated").with("ignore_unknown_fields", "true");
        let cluster: Cluster = rest.get("/cluster", &query).await?;
        if cluster.disaggregated {
            return Err(unfit(format!(
                "array {} is an ASA r2, which has no FlexVols; a unified array is needed",
                cluster.name
            )));
        }
    }
    Ok(())
}

/// The SVM that is named, or the only one that there is.
async fn choose_svm(rest: &Rest, wanted: Option<&str>) -> DriverResult<Svm> {
    let mut query = Query::new().fields("name,uuid,state,subtype,aggregates");
    if let Some(name) = wanted {
        query = query.with("name", name);
    }
    let found: Vec<Svm> = rest.list("/svm/svms", &query).await?;
    let names: Vec<&str> = found.iter().map(|svm| svm.name.as_str()).collect();
    let refused = |words: String| DriverError::new(DriverErrorKind::InvalidArgument, words);
    match found.as_slice() {
        [svm] if svm.state.is_empty() || svm.state == "running" => Ok(svm.clone()),
        [svm] => Err(refused(format!("SVM {} is {}; it has to run", svm.name, svm.state))),
        [] => Err(refused(format!("the array has no SVM {}", wanted.unwrap_or("that this account sees")))),
        _ => {
            Err(refused(format!("the account sees several SVMs: {}; name one in device-config:svm", names.join(", "))))
        }
    }
}

impl Array {
    /// Aggregates that this SVM may use. An account of the SVM alone sees their names only.
    pub async fn aggregates(&self) -> ArrayResult<Vec<Aggregate>> {
        let fields = "name,uuid,state,space.block_storage,block_storage.primary";
        let listed: ArrayResult<Vec<Aggregate>> =
            self.rest.list("/storage/aggregates", &Query::new().fields(fields)).await;
        let all = match listed {
            Err(error) if error.is_denied() || error.is_not_found() => Vec::new(),
            other => other?,
        };
        let assigned = &self.svm.aggregates;
        if all.is_empty() {
            let named = |name: &String| Aggregate { name: name.clone(), ..Aggregate::default() };
            return Ok(assigned.iter().map(|aggregate| named(&aggregate.name)).collect());
        }
        let usable = |found: &Aggregate| assigned.is_empty() || assigned.iter().any(|one| one.name == found.name);
        Ok(all.into_iter().filter(usable).collect())
    }

    /// Size and room of one aggregate; `None` where this account cannot see it.
    pub async fn aggregate_space(&self, name: &str) -> ArrayResult<Option<BlockSpace>> {
        let found = self.aggregates().await?.into_iter().find(|aggregate| aggregate.name == name);
        let space = found.map(|Aggregate { space: AggregateSpace { block_storage }, .. }| block_storage);
        Ok(space.filter(|space| space.size > 0))
    }

    pub async fn iscsi_service(&self) -> ArrayResult<Option<IscsiService>> {
        let query = self.here().fields("enabled,target");
        Ok(self.rest.list("/protocols/san/iscsi/services", &query).await?.into_iter().next())
    }

    /// Interfaces that serve iSCSI now.
    pub async fn portals(&self) -> ArrayResult<Vec<Interface>> {
        let query = self.here().with("services", "data_iscsi").fields("name,ip,enabled,state,location");
        let all: Vec<Interface> = self.rest.list("/network/ip/interfaces", &query).await?;
        Ok(all.into_iter().filter(|one| one.enabled && one.state == "up" && !one.ip.address.is_empty()).collect())
    }
}

//! The SR's metadata: a text in a small LUN of its own, in the SR's first FlexVol.

use tanada_driver::{DriverError, DriverErrorKind, DriverResult, Endpoint, METADATA_BYTES_MAX, metadata};

use super::Sr;
use crate::array::LunSpec;
use crate::model::Lun;
use crate::names::{Attachment, METADATA_LUN, lun_path};

impl Sr {
    pub async fn put_metadata(&self, text: &[u8]) -> DriverResult<()> {
        let _one_at_a_time = self.keeping.lock().await;
        let lun = match self.metadata_lun().await? {
            Some(lun) => lun,
            None => self.make_metadata_lun().await?,
        };
        let (endpoint, attachment) = self.enter(&lun, true).await?;
        let put = metadata::put(&self.bridges, &endpoint, text).await;
        self.conceal(&lun, &attachment).await?;
        put
    }

    pub async fn metadata(&self) -> DriverResult<Option<Vec<u8>>> {
        let _one_at_a_time = self.keeping.lock().await;
        let Some(lun) = self.metadata_lun().await? else { return Ok(None) };
        let (endpoint, attachment) = self.enter(&lun, false).await?;
        let text = metadata::get(&self.bridges, &endpoint).await;
        self.conceal(&lun, &attachment).await?;
        text
    }

    async fn metadata_lun(&self) -> DriverResult<Option<Lun>> {
        let found = self.array.luns_named(&self.pattern(), &[METADATA_LUN.to_owned()]).await?;
        Ok(found.into_iter().find(|lun| self.owns_flexvol(lun.flexvol()) && lun.base() == METADATA_LUN))
    }

    async fn make_metadata_lun(&self) -> DriverResult<Lun> {
        let first = self.flexvols().await?.into_iter().next();
        let gone =
            || DriverError::new(DriverErrorKind::NotFound, format!("SR {} has no FlexVol on the array", self.sr));
        let spec = LunSpec {
            path: lun_path(&first.ok_or_else(gone)?.name, METADATA_LUN),
            size: metadata::volume_bytes(METADATA_BYTES_MAX),
            reserved: !self.config.thin,
            comment: self.container.comment().chars().take(254).collect(),
            attributes: vec![("tanada.sr", self.sr.to_string())],
        };
        Ok(self.array.create_lun(&spec).await?.0)
    }

    /// A killed process leaves its attachment; a token of this host is as good as new.
    async fn enter(&self, lun: &Lun, writable: bool) -> DriverResult<(Endpoint, Attachment)> {
        let token = format!("metadata-{}-{}", self.host, if writable { "rw" } else { "ro" });
        let attachment = Attachment { token, writable, initiator: self.initiator.clone() };
        let entered = self.expose(lun, &attachment).await;
        if entered.is_err()
            && let Err(error) = self.conceal(lun, &attachment).await
        {
            tracing::debug!(%error, "an attachment of the metadata LUN is left for the next time");
        }
        Ok((entered?, attachment))
    }
}

//! The SR as a whole: its FlexVols' comments, and its end.

use tanada_driver::{DriverError, DriverErrorKind, DriverResult};
use uuid::Uuid;

use super::Sr;
use crate::names::{Attachment, Container, METADATA_LUN};

impl Sr {
    /// Sees to it that the SR is there and bears its present name. `NotFound` where it has no FlexVol.
    pub async fn describe(&self) -> DriverResult<()> {
        let flexvols = self.flexvols().await?;
        let Some(first) = flexvols.first() else {
            let words = format!("SVM {} has no FlexVol of SR {}", self.array.svm().name, self.sr);
            return Err(DriverError::new(DriverErrorKind::NotFound, words));
        };
        if !self.container.name.is_empty() && first.comment != self.container.comment() {
            self.array.describe_flexvol(&first.uuid, &self.container.comment()).await?;
        }
        Ok(())
    }

    /// Deletes the FlexVols with all that is in them. Refused as long as anything in them is in use, or is not the SR's.
    pub async fn erase(&self) -> DriverResult<()> {
        let flexvols = self.flexvols().await?;
        let refused = |words: String| Err(DriverError::new(DriverErrorKind::Busy, words));
        for flexvol in &flexvols {
            if Container::parse(&flexvol.comment).is_none_or(|said| said.sr != self.sr) {
                let words =
                    format!("FlexVol {} does not say in its comment that it is of SR {}", flexvol.name, self.sr);
                return refused(words);
            }
        }
        let luns = self.luns().await?;
        for lun in &luns {
            let ours = lun.base() == METADATA_LUN || Uuid::try_parse(lun.base()).is_ok();
            if !ours {
                return refused(format!("LUN {} is not of SR {}; move or delete it first", lun.name, self.sr));
            }
            if let Some(used) = Attachment::all_of(lun).iter().find(|_| lun.base() != METADATA_LUN) {
                return refused(format!("LUN {} is attached by {}", lun.name, used.initiator));
            }
        }
        for lun in luns {
            for left in Attachment::all_of(&lun) {
                self.conceal(&lun, &left).await?;
            }
            self.drop_stray_maps(&lun).await?;
        }
        for flexvol in flexvols {
            self.array.delete_flexvol(&flexvol.uuid).await?;
        }
        Ok(())
    }
}

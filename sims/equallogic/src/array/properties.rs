//! Single settings of a volume.

use crate::array::size::Pages;
use crate::array::volume::{Depletion, Kind, Thin};
use crate::array::volumes::check_description;
use crate::array::{Array, Outcome, Refused};

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Property {
    Description(String),
    Alias(String),
    MultihostAccess(bool),
    /// Thin provisioning on or off.
    Thin(bool),
    /// Percentages of the reported size.
    ThinMinReserve(u64),
    ThinGrowthWarn(u64),
    ThinGrowthMax(u64),
    /// Percent of the volume reserve, at most 10 000.
    SnapReserve(u64),
    SnapWarn(u64),
    SnapDepletion(Depletion),
}

impl Array {
    pub fn set_property(&mut self, name: &str, property: Property) -> Outcome<()> {
        match property {
            Property::Description(text) => {
                check_description(&text)?;
                self.group.volume_mut(name)?.description = text;
            }
            Property::Alias(text) => self.group.volume_mut(name)?.alias = text,
            Property::MultihostAccess(enabled) => self.group.volume_mut(name)?.multihost = enabled,
            Property::Thin(enabled) => self.set_thin(name, enabled)?,
            Property::ThinMinReserve(percent) => self.change_thin(name, |thin| thin.min_reserve = percent)?,
            Property::ThinGrowthWarn(percent) => self.change_thin(name, |thin| thin.growth_warn = percent)?,
            Property::ThinGrowthMax(percent) => self.change_thin(name, |thin| thin.growth_max = percent)?,
            Property::SnapReserve(percent) => self.set_snap_reserve(name, percent)?,
            Property::SnapWarn(percent) => self.group.volume_mut(name)?.snap_warn = percent,
            Property::SnapDepletion(policy) => self.group.volume_mut(name)?.depletion = policy,
        }
        Ok(())
    }

    fn set_thin(&mut self, name: &str, enabled: bool) -> Outcome<()> {
        let volume = self.group.volume(name)?;
        if volume.kind != Kind::Standard {
            return Err(Refused(format!("Thin provisioning of volume {name} cannot be changed.")));
        }
        if enabled == volume.thin.is_some() {
            return Ok(());
        }
        if enabled {
            let volume = self.group.volume_mut(name)?;
            let thin = Thin::default();
            (volume.thin, volume.in_use, volume.reserve) =
                (Some(thin), Pages(0), volume.pages.percent(thin.min_reserve));
            return Ok(());
        }
        let more = volume.pages.minus(volume.reserve);
        self.need(&volume.pool, more.plus(more.percent(volume.snap_reserve)))?;
        let volume = self.group.volume_mut(name)?;
        (volume.thin, volume.reserve) = (None, volume.pages);
        Ok(())
    }

    fn change_thin(&mut self, name: &str, change: impl FnOnce(&mut Thin)) -> Outcome<()> {
        let volume = self.group.volume_mut(name)?;
        let Some(mut thin) = volume.thin else {
            return Err(Refused(format!("Volume {name} is not thin-provisioned.")));
        };
        change(&mut thin);
        if thin.min_reserve > thin.growth_max || thin.growth_max > 100 {
            return Err(Refused("The minimum reserve may not exceed the maximum in-use space, nor that 100%.".into()));
        }
        volume.thin = Some(thin);
        Ok(())
    }

    fn set_snap_reserve(&mut self, name: &str, percent: u64) -> Outcome<()> {
        if percent > 10_000 {
            return Err(Refused(format!("Snapshot reserve {percent}% is more than 10000%.")));
        }
        let volume = self.group.volume(name)?;
        let more = volume.reserve.percent(percent).minus(volume.snap_reserve_pages());
        self.need(&volume.pool, more)?;
        self.group.volume_mut(name)?.snap_reserve = percent;
        Ok(())
    }
}

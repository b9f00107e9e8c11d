//! The value of `--disk`.

use std::str::FromStr;

use host_vsp::api::model::{DiskConfig, DiskType};
use host_vsp::storage::Format;

/// How a disk is described, for usage lines.
pub const USAGE: &str = "path=FILE[,KEY=VALUE]...";

/// What may follow the path, for messages.
const KEYS: &str = "type=disk|dvd, format=raw|qcow2|vhd|vhdx, readonly=on, backing_files=on, \
                    id=NAME, controller=scsiN|vmdN, lun=N, block-size=4096, serial=TEXT";

/// A disk as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Disk(pub DiskConfig);

impl FromStr for Disk {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut config = DiskConfig::default();
        let mut readonly = None;
        for field in fields(text) {
            match field.split_once('=') {
                Some(("path", value)) if !value.is_empty() => config.path = Some(value.into()),
                Some(("type", "disk")) => config.kind = DiskType::Disk,
                Some(("type", "dvd")) => config.kind = DiskType::Dvd,
                Some(("format", value)) => config.format = Some(format(value)?),
                Some(("readonly", value)) => readonly = Some(switch("readonly", value)?),
                Some(("backing_files", value)) => {
                    config.backing_files = switch("backing_files", value)?;
                }
                Some(("id", value)) => config.id = Some(value.into()),
                Some(("controller", value)) => config.controller = Some(value.into()),
                Some(("lun", value)) => config.lun = Some(number("lun", value)?),
                Some(("block-size", value)) => {
                    config.block_size = Some(number("block-size", value)?);
                }
                Some(("serial", value)) => config.serial = Some(value.into()),
                _ => return Err(format!("{field:?} is not path=FILE, {KEYS}")),
            }
        }
        let is_dvd = config.kind == DiskType::Dvd;
        if is_dvd && readonly == Some(false) {
            return Err("a DVD is only read: leave readonly=off away".into());
        }
        config.readonly = readonly.unwrap_or(is_dvd);
        if config.path.is_none() && !is_dvd {
            return Err("the path is missing: path=FILE".into());
        }
        Ok(Self(config))
    }
}

fn format(name: &str) -> Result<Format, String> {
    Format::named(name)
        .ok_or_else(|| format!("the format is raw, qcow2, vhd or vhdx, not {name:?}"))
}

/// A field that is on or off.
pub(super) fn switch(name: &str, value: &str) -> Result<bool, String> {
    match value {
        "on" => Ok(true),
        "off" => Ok(false),
        _ => Err(format!("{name} is on or off, not {value:?}")),
    }
}

/// A field that is a number.
fn number<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    let number = value.parse();
    number.map_err(|_| format!("{name} is a number, not {value:?}"))
}

/// The fields between commas; two commas stand for one within a field.
pub(super) fn fields(text: &str) -> Vec<String> {
    let mut fields = vec![String::new()];
    let mut rest = text.chars().peekable();
    while let Some(c) = rest.next() {
        match (c, fields.last_mut()) {
            (',', _) if rest.next_if_eq(&',').is_none() => fields.push(String::new()),
            (c, Some(field)) => field.push(c),
            _ => {}
        }
    }
    fields
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn disks_have_a_path() {
        let disk = |text: &str| text.parse::<Disk>();
        let plain = DiskConfig {
            path: Some("a".into()),
            ..DiskConfig::default()
        };
        assert_eq!(disk("path=a"), Ok(Disk(plain)));
        assert_eq!(
            disk(
                "path=a,,b,readonly=on,id=root,controller=scsi1,format=vhd,backing_files=on,lun=7,\
                 block-size=4096,serial=WD 4"
            ),
            Ok(Disk(DiskConfig {
                kind: DiskType::Disk,
                path: Some("a,b".into()),
                format: Some(Format::Vhd),
                readonly: true,
                backing_files: true,
                id: Some("root".into()),
                controller: Some("scsi1".into()),
                lun: Some(7),
                block_size: Some(4096),
                serial: Some("WD 4".into()),
            }))
        );
        let dvd = DiskConfig {
            kind: DiskType::Dvd,
            readonly: true,
            ..DiskConfig::default()
        };
        assert_eq!(disk("type=dvd"), Ok(Disk(dvd.clone())));
        let path = Some("a".into());
        assert_eq!(
            disk("path=a,type=dvd"),
            Ok(Disk(DiskConfig { path, ..dvd }))
        );
        for wrong in [
            "type=dvd,path=a,readonly=off",
            "type=tape,path=a",
            "",
            "a",
            "path=",
            "path=a,",
            "path=a,readonly",
            "readonly=on",
            "path=a,x=1",
            "path=a,readonly=yes",
            "path=a,format=vmdk",
            "path=a,lun=-1",
            "path=a,lun=256",
            "path=a,block-size=4K",
        ] {
            assert!(disk(wrong).is_err(), "{wrong}");
        }
    }
}

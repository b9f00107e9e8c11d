//! The value of `--net`.

use std::str::FromStr;

use host_vsp::api::model::NetConfig;

use super::disk::{fields, switch};

/// What a network adapter is described by, for usage lines and messages.
pub const FIELDS: &str = "user|tap=NAME[,queues=N]|socket=PATH[,listen=on][,mac=ADDRESS][,mtu=N]\
                          [,forward=tcp:HOST:GUEST][,id=NAME]";

/// A network adapter as it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Net(pub NetConfig);

impl FromStr for Net {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let mut config = NetConfig::default();
        let mut nets = 0;
        for field in fields(text) {
            match field.split_once('=') {
                None if field == "user" => nets += 1,
                Some(("tap", value)) if !value.is_empty() => {
                    config.tap = Some(value.into());
                    nets += 1;
                }
                Some(("socket", value)) if !value.is_empty() => {
                    config.socket = Some(value.into());
                    nets += 1;
                }
                Some(("listen", value)) => config.listen = switch("listen", value)?,
                Some(("forward", value)) => config.forwards.push(value.into()),
                Some(("mac", value)) => config.mac = Some(value.into()),
                Some(("queues", value)) => {
                    let queues = value
                        .parse()
                        .map_err(|_| format!("queues is a number, such as 4, not {value:?}"))?;
                    config.queues = Some(queues);
                }
                Some(("mtu", value)) => {
                    let mtu = value.parse().map_err(|_| {
                        format!("an MTU is a number of bytes, such as 1500, not {value:?}")
                    })?;
                    config.mtu = Some(mtu);
                }
                Some(("id", value)) => config.id = Some(value.into()),
                _ => return Err(format!("{field:?} is not one of {FIELDS}")),
            }
        }
        if nets != 1 {
            return Err("say where the cable leads: user, tap=NAME or socket=PATH".into());
        }
        // What else cannot be is found out before anything is made.
        config.check().map_err(|error| error.to_string())?;
        Ok(Self(config))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn adapters_have_one_net() {
        let net = |text: &str| text.parse::<Net>();
        assert_eq!(net("user"), Ok(Net(NetConfig::default())));
        assert_eq!(
            net("user,forward=tcp:8080:80,forward=udp:53,mtu=9000,mac=02:00:00:00:00:07,id=lan"),
            Ok(Net(NetConfig {
                forwards: vec!["tcp:8080:80".into(), "udp:53".into()],
                mtu: Some(9000),
                mac: Some("02:00:00:00:00:07".into()),
                id: Some("lan".into()),
                ..NetConfig::default()
            }))
        );
        assert_eq!(net("tap=tap0").unwrap().0.tap.as_deref(), Some("tap0"));
        assert_eq!(net("tap=tap0,queues=4").unwrap().0.queues, Some(4));
        assert!(net("socket=a,,b,listen=on").unwrap().0.listen);
        for (wrong, said) in [
            ("", "one of"),
            ("tap", "one of"),
            ("tap=", "one of"),
            ("mtu=1500", "where the cable leads"),
            ("user,tap=tap0", "where the cable leads"),
            ("user,mtu=x", "a number of bytes"),
            ("tap=tap0,queues=x", "queues is a number"),
            ("tap=tap0,queues=0", "from 1 to 64 queues"),
            ("tap=tap0,queues=65", "from 1 to 64 queues"),
            ("user,queues=2", "only with tap"),
            ("user,mtu=67", "from 68 to 9000"),
            ("user,mtu=70000", "from 68 to 9000"),
            ("user,mac=1:2:3", "six pairs"),
            ("user,mac=01:00:00:00:00:07", "one station"),
            ("user,mac=00:00:00:00:00:00", "one station"),
            ("user,forward=tcp:x", "tcp:8080:80"),
            ("tap=tap0,forward=tcp:1:1", "only with user"),
            ("user,listen=on", "only with socket"),
            ("user,listen=maybe", "on or off"),
        ] {
            let error = net(wrong).unwrap_err();
            assert!(error.contains(said), "{wrong}: {error}");
            assert!(!error.contains('\n'), "{wrong}: {error}");
        }
    }
}

//! A host that follows a script, for what a real one never does.

use std::sync::{Arc, Mutex};

use host_vsp::hv::{Hypercalls, Messages};
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::message::{Encoded, Message};

use crate::FakeHypervisor;

/// What to do about a message of the guest: the answers to send.
pub type Script = Box<dyn FnMut(Message<'_>) -> Vec<Encoded> + Send>;

/// A host that answers each message by a script and knows every connection id.
pub struct ScriptedHost {
    messages: Arc<dyn Messages>,
    script: Mutex<Script>,
}

impl ScriptedHost {
    /// Makes it the host of `hypervisor`'s guest.
    pub fn serve(
        hypervisor: &FakeHypervisor,
        script: impl FnMut(Message<'_>) -> Vec<Encoded> + Send + 'static,
    ) {
        hypervisor.serve(Self {
            messages: hypervisor.partition().messages,
            script: Mutex::new(Box::new(script)),
        });
    }
}

impl Hypercalls for ScriptedHost {
    fn post_message(&self, vp: u32, _connection_id: u32, _type: u32, payload: &[u8]) -> Status {
        let message = Message::parse(payload).expect("guests send good messages");
        let answers = (self.script.lock().unwrap())(message);
        for answer in answers {
            self.messages.post(vp, &answer);
        }
        Status::SUCCESS
    }

    fn signal_event(&self, _vp: u32, _connection_id: u32, _flag: u16) -> Status {
        Status::SUCCESS
    }
}

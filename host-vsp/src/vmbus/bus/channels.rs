//! Channels that are offered: their GPADLs, and how they are opened, moved and closed.
#![warn(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects
)]

use vmbus_proto::message::{
    GpadlCreated, GpadlId, GpadlTeardown, Message, ModifyChannel, ModifyChannelResponse,
    OpenChannel, OpenResult,
};
use vmbus_proto::version::Version;

use super::super::gpadl::{GpadlError, Outcome};
use super::super::state::{Channel, ChannelState, OpenRequest};
use super::{Action, Bus, NO_INTERRUPT_VP, status};

impl Bus {
    /// The outcome of [`Action::Open`].
    pub fn opened(&mut self, relid: u32, success: bool) {
        let Some(channel) = self.state.channels.get_mut(&relid) else {
            return;
        };
        let ChannelState::Opening(open) = &channel.state else {
            return;
        };
        let open = open.clone();
        if success {
            channel.state = ChannelState::Open(open.clone());
            self.send_open_result(&open, status::SUCCESS);
            // An interrupt raised before the guest was ready for it may have been lost.
            self.actions.push_back(Action::Kick { relid });
        } else {
            channel.state = ChannelState::Closed;
            self.send_open_result(&open, status::UNSUCCESSFUL);
        }
    }

    pub(super) fn gpadl_outcome(&mut self, outcome: Option<Outcome>) {
        let Some(Outcome {
            relid,
            gpadl,
            result,
        }) = outcome
        else {
            return;
        };
        let status = match result {
            Ok(()) => status::SUCCESS,
            Err(GpadlError::TooMany) => status::INSUFFICIENT_RESOURCES,
            Err(_) => status::INVALID_PARAMETER,
        };
        if result.is_err() {
            self.refuse();
        }
        self.send(&Message::GpadlCreated(GpadlCreated {
            relid: relid.into(),
            gpadl: gpadl.into(),
            status: status.into(),
        }));
    }

    pub(super) fn gpadl_teardown(&mut self, teardown: &GpadlTeardown) {
        let gpadl = teardown.gpadl.get();
        let Some(found) = self.state.gpadls.get(gpadl) else {
            return self.refuse();
        };
        if found.relid != teardown.relid.get() || found.teardown_requested {
            return self.refuse();
        }
        if self.open_channels().any(|open| open.gpadl == gpadl) {
            // The rings are still in it: it is given back when the channel closes.
            self.state.gpadls.request_teardown(gpadl);
        } else {
            self.give_back(gpadl);
        }
    }

    fn give_back(&mut self, gpadl: u32) {
        if self.state.gpadls.remove(gpadl) {
            self.send(&Message::GpadlTorndown(GpadlId {
                gpadl: gpadl.into(),
            }));
        }
    }

    pub(super) fn open_channel(&mut self, message: &OpenChannel) {
        let relid = message.relid.get();
        let closed = matches!(
            self.state.channels.get(&relid),
            Some(Channel {
                state: ChannelState::Closed,
                ..
            })
        );
        let request = self.open_request(message).filter(|_| closed);
        match (request, self.state.channels.get_mut(&relid)) {
            (Some(request), Some(channel)) => {
                channel.state = ChannelState::Opening(request.clone());
                self.actions.push_back(Action::Open(request));
            }
            _ => {
                self.refuse();
                self.send(&Message::OpenChannelResult(OpenResult {
                    relid: message.relid,
                    open_id: message.open_id,
                    status: status::INVALID_PARAMETER.into(),
                }));
            }
        }
    }

    /// The rings that an OPENCHANNEL describes, if they can be.
    fn open_request(&self, message: &OpenChannel) -> Option<OpenRequest> {
        let gpadl = self.state.gpadls.get(message.ring_gpadl.get())?;
        let [range] = gpadl.ranges.as_slice() else {
            return None;
        };
        if gpadl.relid != message.relid.get() || range.byte_offset != 0 {
            return None;
        }
        let split = usize::try_from(message.downstream_page_offset.get()).ok()?;
        let (to_host, to_guest) = range.pages.split_at_checked(split)?;
        // A control page and a data page each, at least.
        if to_host.len() < 2 || to_guest.len() < 2 {
            return None;
        }
        Some(OpenRequest {
            relid: message.relid.get(),
            open_id: message.open_id.get(),
            target_vp: self.target(message.target_vp.get())?,
            gpadl: message.ring_gpadl.get(),
            to_host: to_host.into(),
            to_guest: to_guest.into(),
        })
    }

    /// A target as a guest names it; `None` where there is no such processor.
    fn target(&self, vp: u32) -> Option<Option<u32>> {
        match vp {
            NO_INTERRUPT_VP => Some(None),
            vp if vp < self.vp_count => Some(Some(vp)),
            _ => None,
        }
    }

    pub(super) fn close_channel(&mut self, relid: u32) {
        let Some(channel) = self.state.channels.get_mut(&relid) else {
            return self.refuse();
        };
        let ChannelState::Open(open) = &channel.state else {
            // A rescinded channel was stopped already; guests close it all the same.
            if !matches!(channel.state, ChannelState::Rescinded) {
                self.refuse();
            }
            return;
        };
        let open = open.clone();
        channel.state = ChannelState::Closed;
        self.stop(&open);
        self.rescind_sub_channels(relid);
    }

    /// Stops an open channel, and gives its rings back where the guest has asked for that.
    pub(super) fn stop(&mut self, open: &OpenRequest) {
        let relid = open.relid;
        self.actions.push_back(Action::Close { relid });
        let gpadl = self.state.gpadls.get(open.gpadl);
        if gpadl.is_some_and(|gpadl| gpadl.teardown_requested) {
            self.give_back(open.gpadl);
        }
    }

    pub(super) fn modify_channel(&mut self, message: &ModifyChannel, version: Version) {
        let relid = message.relid.get();
        let target = self.target(message.target_vp.get());
        let open = match self
            .state
            .channels
            .get_mut(&relid)
            .map(|channel| &mut channel.state)
        {
            Some(ChannelState::Open(open)) if version >= Version::V4_1 => Some(open),
            _ => None,
        };
        let done = if let (Some(open), Some(vp)) = (open, target) {
            open.target_vp = vp;
            self.actions.push_back(Action::Retarget { relid, vp });
            true
        } else {
            self.refuse();
            false
        };
        if version >= Version::V5_3 {
            let status = if done {
                status::SUCCESS
            } else {
                status::INVALID_PARAMETER
            };
            self.send(&Message::ModifyChannelResponse(ModifyChannelResponse {
                relid: message.relid,
                status: status.into(),
            }));
        }
        if done {
            self.actions.push_back(Action::Kick { relid });
        }
    }

    pub(super) fn send_open_result(&mut self, open: &OpenRequest, status: u32) {
        self.send(&Message::OpenChannelResult(OpenResult {
            relid: open.relid.into(),
            open_id: open.open_id.into(),
            status: status.into(),
        }));
    }
}

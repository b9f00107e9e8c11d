//! What this crate knows of the wire, by name.
//!
//! Offsets, sizes and values come from the compiler, which also sees to it that no field of a
//! struct and no variant of an enumeration is forgotten here. Constants and whole types that are
//! forgotten are found in the sources ([`unknown`](crate::sources::unknown)).

use std::collections::BTreeMap;
use std::mem::offset_of;

use vmbus_proto::guid::Guid;
use vmbus_proto::hv::hypercall::Status;
use vmbus_proto::{ic, version};

/// A field of a wire struct.
pub struct Field {
    pub name: &'static str,
    pub offset: usize,
    pub size: usize,
}

/// A wire struct.
pub struct Layout {
    pub path: String,
    pub fields: Vec<Field>,
}

/// Everything.
pub struct Code {
    pub layouts: Vec<Layout>,
    /// Values as [`canonical`](crate::tables::canonical) writes them, by path.
    pub values: BTreeMap<String, String>,
}

/// A constant as a table would write it.
trait Value {
    fn canonical(&self) -> String;
}

macro_rules! by_display {
    ($($kind:ty),*) => {
        $(impl Value for $kind {
            fn canonical(&self) -> String {
                self.to_string()
            }
        })*
    };
}
by_display!(
    &str,
    u8,
    u16,
    u32,
    u64,
    usize,
    Guid,
    version::Version,
    ic::Version
);

impl Value for Status {
    fn canonical(&self) -> String {
        self.0.to_string()
    }
}

/// Two numbers, as of a version.
impl Value for (u32, u32) {
    fn canonical(&self) -> String {
        format!("{} {}", self.0, self.1)
    }
}

impl<T: Value> Value for &[T] {
    fn canonical(&self) -> String {
        let all: Vec<String> = self.iter().map(Value::canonical).collect();
        all.join(" ")
    }
}

impl<T: Value, const N: usize> Value for [T; N] {
    fn canonical(&self) -> String {
        self.as_slice().canonical()
    }
}

/// The size of the field that `_get` gets.
fn size_of_field<T, F>(_get: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

macro_rules! layouts {
    ($($($module:ident)::+ { $($field:ident),+ $(,)? })*) => {
        vec![$({
            type T = vmbus_proto::$($module)::+;
            // Does not compile where a field is missing.
            let _ = |T { $($field: _),+ }: T| {};
            Layout {
                path: stringify!($($module)::+).replace(' ', ""),
                fields: vec![$(Field {
                    name: stringify!($field),
                    offset: offset_of!(T, $field),
                    size: size_of_field(|t: &T| &t.$field),
                }),+],
            }
        }),*]
    };
}

macro_rules! constants {
    ($to:ident; $($($module:ident)::* { $($name:ident)+ })*) => {
        $({
            use vmbus_proto::$($module)::* as from;
            let path = stringify!($($module)::*).replace(' ', "");
            $($to.insert(format!("{path}::{}", stringify!($name)), from::$name.canonical());)+
        })*
    };
}

macro_rules! variants {
    ($to:ident; $($($module:ident)::+ as $repr:ty { $($name:ident)+ })*) => {
        $({
            type T = vmbus_proto::$($module)::+;
            // Does not compile where a variant is missing.
            let _ = |variant: T| match variant {
                $(T::$name => {})+
            };
            let path = stringify!($($module)::+).replace(' ', "");
            $($to.insert(
                format!("{path}::{}", stringify!($name)),
                (T::$name as $repr).canonical(),
            );)+
        })*
    };
}

impl Code {
    /// Everything.
    pub fn known() -> Self {
        let mut values = BTreeMap::new();
        values.insert("PAGE_SIZE".to_owned(), vmbus_proto::PAGE_SIZE.canonical());
        constants(&mut values);
        variants! { values;
            message::MessageType as u32 {
                OfferChannel RescindChannelOffer RequestOffers AllOffersDelivered OpenChannel
                OpenChannelResult CloseChannel GpadlHeader GpadlBody GpadlCreated GpadlTeardown
                GpadlTorndown RelidReleased InitiateContact VersionResponse Unload UnloadResponse
                OpenReservedChannel CloseReservedChannel CloseReservedChannelResponse
                TlConnectRequest ModifyChannel TlConnectResult ModifyChannelResponse
            }
            netvsp::Version as u32 { V1 V2 V4 V5 V6 V6_1 }
            packet::PacketType as u16 { InBand TransferPages GpaDirect Completion }
            ring::Control as u32 {
                WriteIndex ReadIndex InterruptMask PendingSendSize FeatureBits
            }
            storvsp::Operation as u32 {
                CompleteIo RemoveDevice ExecuteSrb ResetLun ResetAdapter ResetBus
                BeginInitialization EndInitialization QueryProtocolVersion QueryProperties
                EnumerateBus FcHbaData CreateSubChannels
            }
            storvsp::ProtocolVersion as u16 { V2_0 V4_2 V5_1 V6_0 V6_2 }
        }
        Self {
            layouts: layouts(),
            values,
        }
    }
}

fn layouts() -> Vec<Layout> {
    layouts! {
        balloon::BalloonRequest { header, pages, reserved }
        balloon::BalloonResponse { header, reserved, more_and_ranges }
        balloon::CapabilitiesReport { header, capabilities, min_pages, max_frame }
        balloon::FlagsResponse { header, flags }
        balloon::Header { message_type, size, transaction_id }
        balloon::HotAddRequest { header, range }
        balloon::HotAddResponse { header, pages, result }
        balloon::PageRange { start_and_count }
        balloon::StatusReport {
            header, available, committed, page_file, zero_free, page_file_writes, io_difference
        }
        balloon::UnballoonRequest { header, more, ranges }
        balloon::VersionRequest { header, version, last_attempt }
        gpa::GpaRangeHeader { byte_count, byte_offset }
        hv::hypercall::PostMessageInput {
            connection_id, reserved, message_type, payload_size, payload
        }
        hv::hypercall::SignalEventInput { connection_id, flag_number, reserved }
        hv::synic::MessageHeader { message_type, payload_size, flags, reserved, origin }
        ic::Header {
            framework, message_type, version, size, status, transaction_id, flags, reserved
        }
        ic::NegotiateHeader { framework_count, version_count, reserved }
        ic::Version { major, minor }
        ic::heartbeat::Heartbeat { sequence, application, reserved }
        ic::kvp::Head { operation, pool, padding }
        ic::kvp::Pair { value_type, key_size, value_size, key, value }
        ic::shutdown::Shutdown { reason, timeout, flags, message }
        ic::timesync::Time { host_time, guest_time, round_trip_time, flags, reserved }
        ic::timesync::ReferencedTime {
            host_time, reference_time, flags, leap_indicator, stratum, reserved
        }
        ic::vss::Message { operation, reserved, flags }
        keyboard::Keystroke { message_type, code, reserved, flags }
        keyboard::LedIndicators { message_type, lights, reserved }
        keyboard::ProtocolRequest { message_type, version }
        keyboard::ProtocolResponse { message_type, accepted }
        message::ChannelId { relid }
        message::CloseReservedChannel { channel_id, target_vp, target_sint }
        message::gpadl::GpadlBodyHeader { message_number, gpadl }
        message::GpadlCreated { relid, gpadl, status }
        message::gpadl::GpadlHeaderHeader { relid, gpadl, range_bytes, range_count }
        message::GpadlId { gpadl }
        message::GpadlTeardown { relid, gpadl }
        message::Header { message_type, padding }
        message::InitiateContact {
            version, target_vp, interrupt_page_or_target, monitor_page1, monitor_page2
        }
        message::ModifyChannel { relid, target_vp }
        message::ModifyChannelResponse { relid, status }
        message::OfferChannel {
            class, instance, reserved, flags, mmio_megabytes, user_defined, sub_channel_index,
            reserved2, relid, monitor_id, monitor_allocated, dedicated_interrupt, connection_id
        }
        message::OpenChannel {
            relid, open_id, ring_gpadl, target_vp, downstream_page_offset, user_data
        }
        message::OpenReservedChannel {
            channel_id, target_vp, target_sint, ring_gpadl, downstream_page_offset
        }
        message::OpenResult { relid, open_id, status }
        message::TlConnect { endpoint, service }
        message::TlConnectResult { endpoint, service, status }
        message::VersionResponse { supported, connection_state, padding, message_connection_id }
        netvsp::Buffer { gpadl, id, reserved }
        netvsp::NdisConfig { mtu, reserved, capabilities }
        netvsp::Sections { offset, size, count, end_offset }
        netvsp::SendRndisPacket { channel, section_index, section_size }
        packet::Descriptor { packet_type, offset8, length8, flags, transaction_id }
        packet::GpaDirectHeader { reserved, range_count }
        packet::TransferPageRange { byte_count, byte_offset }
        packet::TransferPagesHeader { pageset_id, sender_owns_set, reserved, range_count }
        pipe::PipeHeader { packet_type, data_size }
        rndis::Adapter { version, flags, medium, max_packets, max_transfer, alignment, families }
        rndis::Header { message_type, length }
        rndis::ObjectRequest { request_id, oid, length, offset, handle }
        rndis::ndis::ConfigParameter {
            name_offset, name_length, parameter_type, value_offset, value_length
        }
        rndis::ndis::LinkSpeed { transmit, receive }
        rndis::ndis::LinkState { header, connected, duplex, reserved, speed, pause, negotiated }
        rndis::ndis::ObjectHeader { object_type, revision, size }
        rndis::ndis::Offload {
            header, ipv4_tx_encapsulation, ipv4_tx_flags, ipv4_rx_encapsulation,
            ipv4_rx_flags, ipv6_tx_encapsulation, ipv6_tx_flags, ipv6_rx_encapsulation,
            ipv6_rx_flags, lso_v1, ipsec_v1, lso_ipv4_encapsulation, lso_ipv4_max_size,
            lso_ipv4_min_segments, lso_ipv6_encapsulation, lso_ipv6_max_size,
            lso_ipv6_min_segments, lso_ipv6_flags, flags, ipsec_v2, rsc_ipv4, rsc_ipv6,
            reserved, encapsulated
        }
        rndis::ndis::OffloadEncapsulation {
            header, ipv4_enabled, ipv4_encapsulation, ipv4_header_size, ipv6_enabled,
            ipv6_encapsulation, ipv6_header_size
        }
        rndis::ndis::OffloadParameters {
            header, ipv4_checksum, tcp_ipv4_checksum, udp_ipv4_checksum,
            tcp_ipv6_checksum, udp_ipv6_checksum, lso_v1, ipsec_v1, lso_ipv4, lso_ipv6,
            connection_ipv4, connection_ipv6, reserved, flags, ipsec_v2, rsc_ipv4,
            rsc_ipv6, encapsulated, padding
        }
        rndis::ndis::ReceiveScaleCapabilities { header, flags, interrupts, queues, table_entries }
        rndis::ndis::ReceiveScaleParameters {
            header, flags, base_processor, hash, table_size, reserved1, table_offset,
            key_size, reserved2, key_offset
        }
        rndis::packet::InfoHeader { size, info_type, offset }
        rndis::packet::PacketHeader {
            data_offset, data_length, oob_offset, oob_length, oob_count, info_offset,
            info_length, handle, reserved
        }
        storvsp::ChannelProperties {
            reserved, max_channel_count, reserved1, flags, max_transfer_bytes, reserved2
        }
        storvsp::Srb {
            length, srb_status, scsi_status, port_number, path_id, target_id, lun, cdb_length,
            sense_length, data_in, reserved, data_transfer_length, payload, extension
        }
        storvsp::SrbExtension {
            reserved, queue_tag, queue_action, srb_flags, time_out_seconds, queue_sort_key
        }
        storvsp::VstorPacket { operation, flags, status, body }
    }
}

fn constants(to: &mut BTreeMap<String, String>) {
    constants! { to;
        balloon { CLASS VERSIONS }
        balloon::message_type {
            VERSION_REQUEST VERSION_RESPONSE CAPABILITIES_REPORT CAPABILITIES_RESPONSE
            STATUS_REPORT BALLOON_REQUEST BALLOON_RESPONSE UNBALLOON_REQUEST UNBALLOON_RESPONSE
            HOT_ADD_REQUEST HOT_ADD_RESPONSE INFO HOT_REMOVE_REQUEST HOT_REMOVE_RESPONSE
        }
        balloon::capability { BALLOON HOT_ADD HOT_REMOVE }
        balloon::response_flag { ACCEPTED HOT_REMOVE NO_STATUS_REPORTS }
        console { CLASS MAX_DATA }
        hv::cpuid {
            LEAF_VENDOR LEAF_INTERFACE LEAF_VERSION LEAF_FEATURES LEAF_HINTS LEAF_LIMITS
            LEAF_HARDWARE LEAF_NESTED LEAF_STACK_VENDOR LEAF_STACK_INTERFACE LEAF_STACK_PROPERTIES
            VENDOR_SIGNATURE INTERFACE_SIGNATURE HYPERVISOR_PRESENT
        }
        hv::cpuid::privilege {
            VP_RUNTIME TIME_REF_COUNT SYNIC SYNTHETIC_TIMERS APIC_ACCESS HYPERCALL VP_INDEX RESET
            REFERENCE_TSC FREQUENCY TSC_INVARIANT EBX_POST_MESSAGES EBX_SIGNAL_EVENTS
        }
        hv::cpuid::feature {
            HYPERCALL_XMM_INPUT FREQUENCY_MSRS CRASH_MSRS HYPERCALL_XMM_OUTPUT STIMER_DIRECT
        }
        hv::cpuid::hint {
            REMOTE_TLB_FLUSH APIC_ACCESS RELAXED_TIMING DEPRECATE_AUTO_EOI CLUSTER_IPI
            EX_PROCESSOR_MASKS
        }
        hv::hypercall { POST_MESSAGE SIGNAL_EVENT FAST }
        hv::hypercall::Status {
            SUCCESS INVALID_HYPERCALL_CODE INVALID_HYPERCALL_INPUT INVALID_ALIGNMENT
            INVALID_PARAMETER ACCESS_DENIED INSUFFICIENT_MEMORY INVALID_PORT_ID
            INVALID_CONNECTION_ID INSUFFICIENT_BUFFERS
        }
        hv::msr {
            GUEST_OS_ID HYPERCALL VP_INDEX RESET VP_RUNTIME TIME_REF_COUNT REFERENCE_TSC
            TSC_FREQUENCY APIC_FREQUENCY EOI VP_ASSIST_PAGE SCONTROL SVERSION SIEFP SIMP EOM SINT0
            STIMER0_CONFIG STIMER0_COUNT CRASH_P0 CRASH_CTL CRASH_NOTIFY CRASH_MESSAGE PAGE_ENABLE
            PAGE_ADDRESS
        }
        hv::synic {
            SINT_COUNT VMBUS_SINT MESSAGE_PAYLOAD MESSAGE_SIZE EVENT_FLAGS_SIZE EVENT_FLAG_COUNT
            MESSAGE_TYPE_NONE MESSAGE_TYPE_CHANNEL MESSAGE_TYPE_TIMER_EXPIRED MESSAGE_FLAG_PENDING
            SLOT_TYPE SLOT_PAYLOAD_SIZE SLOT_FLAGS SLOT_PAYLOAD
        }
        hv::synic::Sint { MASKED AUTO_EOI POLLING }
        ic {
            MAX_MESSAGE FRAMEWORK_VERSIONS CHOICE_SIZE FLAG_TRANSACTION FLAG_REQUEST FLAG_RESPONSE
        }
        ic::message_type { NEGOTIATE HEARTBEAT KVP SHUTDOWN TIME_SYNC VSS }
        ic::status { OK FAIL NO_MORE_ITEMS }
        ic::heartbeat { CLASS INSTANCE VERSIONS }
        ic::heartbeat::application { UNKNOWN HEALTHY CRITICAL STOPPED }
        ic::kvp { CLASS INSTANCE VERSIONS MAX_KEY MAX_VALUE VALUE_TEXT }
        ic::kvp::operation { GET SET DELETE ENUMERATE }
        ic::kvp::pool { EXTERNAL GUEST AUTO AUTO_EXTERNAL AUTO_INTERNAL }
        ic::shutdown {
            CLASS INSTANCE VERSIONS REASON_PLANNED FLAG_FORCE FLAG_RESTART FLAG_HIBERNATE
        }
        ic::timesync {
            CLASS INSTANCE VERSION_REFERENCED VERSIONS FLAG_SYNC FLAG_SAMPLE UNIX_EPOCH
        }
        ic::vss { CLASS INSTANCE VERSIONS }
        ic::vss::operation { HOT_BACKUP FREEZE THAW }
        keyboard { CLASS INSTANCE VERSION FLAG_UNICODE FLAG_BREAK FLAG_E0 FLAG_E1 }
        keyboard::message_type { PROTOCOL_REQUEST PROTOCOL_RESPONSE KEYSTROKE LED_INDICATORS }
        message { CONNECTION_ID_MESSAGE CONNECTION_ID_EVENT CONNECTION_ID_CONTACT }
        message::gpadl { PFNS_IN_HEADER PFNS_IN_BODY MAX_PFNS }
        message::offer_flags {
            ENUMERATE_DEVICE_INTERFACE NAMED_PIPE_MODE LOOPBACK_OFFER TLNPI_PROVIDER
        }
        message::pipe_mode { BYTE MESSAGE }
        netvsp {
            CLASS RECEIVE_BUFFER_ID SEND_BUFFER_ID NO_SECTION MIN_SECTION_SIZE
            SEND_TABLE_ENTRIES DATA_PATH_SYNTHETIC DATA_PATH_VF SUB_CHANNEL_ALLOCATE
            SEND_TABLE_SIZE
        }
        netvsp::capability { SRIOV IEEE_8021Q TEAMING RSC }
        netvsp::message_type {
            INIT INIT_COMPLETE SEND_NDIS_VERSION SEND_RECEIVE_BUFFER
            SEND_RECEIVE_BUFFER_COMPLETE REVOKE_RECEIVE_BUFFER SEND_SEND_BUFFER
            SEND_SEND_BUFFER_COMPLETE REVOKE_SEND_BUFFER SEND_RNDIS_PACKET
            SEND_RNDIS_PACKET_COMPLETE SEND_NDIS_CONFIG SEND_VF_ASSOCIATION
            SWITCH_DATA_PATH SUB_CHANNEL SEND_INDIRECTION_TABLE
        }
        netvsp::rndis_channel { DATA CONTROL }
        netvsp::status { NONE SUCCESS FAILURE INVALID_RNDIS_PACKET BUSY }
        packet { DESCRIPTOR_SIZE FLAG_COMPLETION_REQUESTED }
        pipe { PACKET_DATA }
        ring { ALIGN TRAILER_SIZE FEATURE_PENDING_SEND_SIZE }
        rndis { HEADER_SIZE VERSION DEVICE_CONNECTIONLESS MEDIUM_802_3 }
        rndis::message_type {
            PACKET INITIALIZE HALT QUERY SET RESET INDICATE_STATUS KEEPALIVE COMPLETION
        }
        rndis::status {
            SUCCESS MEDIA_CONNECT MEDIA_DISCONNECT NETWORK_CHANGE OFFLOAD_CURRENT_CONFIG
            FAILURE NOT_SUPPORTED INVALID_LENGTH INVALID_DATA INVALID_OID
        }
        rndis::ndis {
            ENCAPSULATION_ETHERNET RSS_HASH_TCP_IPV4 RSS_HASH_TCP_IPV6 RSS_TABLE_ENTRIES
            RSS_KEY_SIZE RECEIVE_SCALE_SIZE CONFIG_STRING CONFIG_NETWORK_ADDRESS
        }
        rndis::ndis::object_type {
            DEFAULT RSS_CAPABILITIES RSS_PARAMETERS OFFLOAD OFFLOAD_ENCAPSULATION
        }
        rndis::ndis::checksum { IP_OPTIONS TCP_OPTIONS TCP UDP IP }
        rndis::ndis::lso { IPV6_EXTENSIONS TCP_OPTIONS }
        rndis::ndis::wanted { NO_CHANGE DISABLED TX RX BOTH }
        rndis::ndis::switched { NO_CHANGE OFF ON }
        rndis::ndis::rss_flag { HASH_UNCHANGED TABLE_UNCHANGED KEY_UNCHANGED DISABLE }
        rndis::ndis::hash { TOEPLITZ IPV4 TCP_IPV4 IPV6 TCP_IPV6 }
        rndis::oid {
            GEN_SUPPORTED_LIST GEN_HARDWARE_STATUS GEN_MEDIA_SUPPORTED GEN_MEDIA_IN_USE
            GEN_MAXIMUM_LOOKAHEAD GEN_MAXIMUM_FRAME_SIZE GEN_LINK_SPEED
            GEN_TRANSMIT_BUFFER_SPACE GEN_RECEIVE_BUFFER_SPACE GEN_TRANSMIT_BLOCK_SIZE
            GEN_RECEIVE_BLOCK_SIZE GEN_VENDOR_ID GEN_VENDOR_DESCRIPTION
            GEN_CURRENT_PACKET_FILTER GEN_CURRENT_LOOKAHEAD GEN_DRIVER_VERSION
            GEN_MAXIMUM_TOTAL_SIZE GEN_MAC_OPTIONS GEN_MEDIA_CONNECT_STATUS
            GEN_MAXIMUM_SEND_PACKETS GEN_VENDOR_DRIVER_VERSION
            GEN_NETWORK_LAYER_ADDRESSES GEN_RECEIVE_SCALE_CAPABILITIES
            GEN_RECEIVE_SCALE_PARAMETERS GEN_MAX_LINK_SPEED GEN_LINK_STATE
            GEN_RNDIS_CONFIG_PARAMETER GEN_XMIT_OK GEN_RCV_OK GEN_XMIT_ERROR
            GEN_RCV_ERROR GEN_RCV_NO_BUFFER GEN_FRIENDLY_NAME ETHERNET_PERMANENT_ADDRESS
            ETHERNET_CURRENT_ADDRESS ETHERNET_MULTICAST_LIST ETHERNET_MAXIMUM_LIST_SIZE
            ETHERNET_RCV_ERROR_ALIGNMENT ETHERNET_XMIT_ONE_COLLISION
            ETHERNET_XMIT_MORE_COLLISIONS TCP_OFFLOAD_CURRENT_CONFIG
            TCP_OFFLOAD_PARAMETERS TCP_OFFLOAD_HARDWARE_CAPABILITIES
            OFFLOAD_ENCAPSULATION FRIENDLY_NAME_SIZE MEDIA_CONNECTED MEDIA_DISCONNECTED
        }
        rndis::oid::packet_filter { DIRECTED MULTICAST ALL_MULTICAST BROADCAST PROMISCUOUS }
        rndis::oid::mac_option {
            COPY_LOOKAHEAD_DATA RECEIVE_SERIALIZED TRANSFERS_NOT_PEND NO_LOOPBACK
            FULL_DUPLEX
        }
        rndis::packet::info_type { CHECKSUM LARGE_SEND IEEE_8021Q HASH INTERNAL PACKET_ID }
        rndis::packet::TxChecksum { IPV4 IPV6 TCP UDP IP_HEADER }
        rndis::packet::rx_checksum {
            TCP_FAILED UDP_FAILED IP_FAILED TCP_SUCCEEDED UDP_SUCCEEDED IP_SUCCEEDED
        }
        storvsp {
            SCSI_CLASS DISK_CLASS PACKET_SIZE PACKET_SIZE_BEFORE_5_1 PACKET_HEADER_SIZE
            FLAG_REQUEST_COMPLETION PROPERTY_MULTI_CHANNEL MAX_CDB MAX_SENSE DATA_OUT DATA_IN
            DATA_NONE
        }
        storvsp::srb_flags {
            QUEUE_ACTION_ENABLE DISABLE_SYNCH_TRANSFER DISABLE_AUTOSENSE DATA_IN DATA_OUT
        }
        storvsp::srb_status {
            SUCCESS ABORTED ERROR INVALID_REQUEST INVALID_PATH_ID DATA_OVERRUN INVALID_LUN
            INVALID_TARGET_ID QUEUE_FROZEN AUTOSENSE_VALID MASK
        }
        storvsp::status {
            SUCCESS INVALID_DEVICE_REQUEST INVALID_PARAMETER REVISION_MISMATCH INVALID_DEVICE_STATE
        }
        version::Version { V2_4 V3_0 V4_0 V4_1 V5_0 V5_1 V5_2 V5_3 V6_0 }
    }
}

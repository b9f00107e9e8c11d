//! From command to CDB.

use super::{Cdb, CdbBytes, FUA, READ_CAPACITY_16, opcode};

impl Cdb {
    /// Builds the CDB. Where a command has two lengths, the shorter one that can say it.
    pub fn to_bytes(&self) -> CdbBytes {
        // One place that builds those with two lengths: it is most of the code.
        let (code10, code16, flags, lba, blocks) = match *self {
            Self::Read { lba, blocks, fua } => {
                let flags = if fua { FUA } else { 0 };
                (opcode::READ_10, opcode::READ_16, flags, lba, blocks)
            }
            Self::Write { lba, blocks, fua } => {
                let flags = if fua { FUA } else { 0 };
                (opcode::WRITE_10, opcode::WRITE_16, flags, lba, blocks)
            }
            Self::Verify {
                lba,
                blocks,
                compare,
            } => {
                let flags = if compare { 2 } else { 0 };
                (opcode::VERIFY_10, opcode::VERIFY_16, flags, lba, blocks)
            }
            Self::SynchronizeCache { lba, blocks } => (
                opcode::SYNCHRONIZE_CACHE_10,
                opcode::SYNCHRONIZE_CACHE_16,
                0,
                lba,
                blocks,
            ),
            Self::TestUnitReady => return six(opcode::TEST_UNIT_READY, [0; 4]),
            Self::RequestSense {
                descriptor,
                allocation_length,
            } => {
                return six(
                    opcode::REQUEST_SENSE,
                    [u8::from(descriptor), 0, 0, allocation_length],
                );
            }
            Self::Inquiry {
                page,
                allocation_length,
            } => {
                let [high, low] = allocation_length.to_be_bytes();
                let evpd = u8::from(page.is_some());
                return six(opcode::INQUIRY, [evpd, page.unwrap_or(0), high, low]);
            }
            Self::ModeSense {
                long,
                no_block_descriptor,
                values,
                page,
                subpage,
                allocation_length,
            } => {
                let dbd = if no_block_descriptor { 8 } else { 0 };
                let page = (values << 6) | (page & 0x3f);
                if long {
                    let address = u32::from_be_bytes([page, subpage, 0, 0]);
                    return ten(opcode::MODE_SENSE_10, dbd, address, allocation_length);
                }
                let [_, low] = allocation_length.min(255).to_be_bytes();
                return six(opcode::MODE_SENSE_6, [dbd, page, subpage, low]);
            }
            Self::StartStopUnit {
                start,
                load_eject,
                power_condition,
            } => {
                let loej = if load_eject { 2 } else { 0 };
                let flags = (power_condition << 4) | loej | u8::from(start);
                return six(opcode::START_STOP_UNIT, [0, 0, 0, flags]);
            }
            Self::PreventAllowMediumRemoval => {
                return six(opcode::PREVENT_ALLOW_MEDIUM_REMOVAL, [0; 4]);
            }
            Self::ReadCapacity10 => return ten(opcode::READ_CAPACITY_10, 0, 0, 0),
            Self::ReadCapacity16 { allocation_length } => {
                return sixteen(
                    opcode::SERVICE_ACTION_IN_16,
                    READ_CAPACITY_16,
                    0,
                    allocation_length,
                );
            }
            Self::Unmap {
                anchor,
                parameter_list_length,
            } => return ten(opcode::UNMAP, u8::from(anchor), 0, parameter_list_length),
            Self::ReportLuns {
                select,
                allocation_length,
            } => {
                let [a, b, c, d] = allocation_length.to_be_bytes();
                let bytes = [
                    opcode::REPORT_LUNS,
                    0,
                    select,
                    0,
                    0,
                    0,
                    a,
                    b,
                    c,
                    d,
                    0,
                    0,
                    0,
                    0,
                    0,
                    0,
                ];
                return CdbBytes { bytes, length: 12 };
            }
        };
        match (u32::try_from(lba), u16::try_from(blocks)) {
            (Ok(address), Ok(count)) => ten(code10, flags, address, count),
            _ => sixteen(code16, flags, lba, blocks),
        }
    }
}

fn six(code: u8, [b1, b2, b3, b4]: [u8; 4]) -> CdbBytes {
    let bytes = [code, b1, b2, b3, b4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    CdbBytes { bytes, length: 6 }
}

fn ten(code: u8, flags: u8, address: u32, count: u16) -> CdbBytes {
    let [a, b, c, d] = address.to_be_bytes();
    let [high, low] = count.to_be_bytes();
    let bytes = [code, flags, a, b, c, d, 0, high, low, 0, 0, 0, 0, 0, 0, 0];
    CdbBytes { bytes, length: 10 }
}

fn sixteen(code: u8, flags: u8, address: u64, count: u32) -> CdbBytes {
    let [l0, l1, l2, l3, l4, l5, l6, l7] = address.to_be_bytes();
    let [c0, c1, c2, c3] = count.to_be_bytes();
    let bytes = [
        code, flags, l0, l1, l2, l3, l4, l5, l6, l7, c0, c1, c2, c3, 0, 0,
    ];
    CdbBytes { bytes, length: 16 }
}

//! ACPI tables: processors, the power switch, COM1 and COM2, and the VMBus device under its MMIO window.
//!
//! Linux finds VMBus by the `_HID` "VMBUS". The device needs a `_CRS` of its own, which may be
//! empty, or the driver's probe ends before it looks at the parent's; the parent's `_CRS` holds
//! the MMIO window, as address-space descriptors, the only kind it takes.
//!
//! The machine has ACPI's fixed hardware in its smallest form: the PM1a event and control blocks.
//! There is no PM timer, no embedded controller and no PCI.

use acpi_tables::aml::{
    AddressSpace, AddressSpaceCacheable, Device, EISAName, IO, Interrupt, Name, Package, Path,
    ResourceTemplate, Scope,
};
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas;
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink, facs::FACS};

use crate::layout;
use crate::memory::GuestMemory;

const OEM: [u8; 6] = *b"HVVSP ";
const OEM_TABLE: [u8; 8] = *b"HOSTVSP ";
const OEM_REVISION: u32 = 1;

/// Sleep type that PM1a control takes for S5, power-off.
pub const SLEEP_TYPE_S5: u8 = 5;

/// Legacy-device flags of the FADT: there are such devices (bit 0), but no VGA (bit 2), no MSI
/// (bit 3), no PCI Express power management (bit 4) and no
/// CMOS clock to rely on (bit 5).
const BOOT_ARCHITECTURE: u16 = 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 5;

/// The tables did not fit or guest memory is too small.
#[derive(Debug, thiserror::Error)]
#[error("the ACPI tables do not fit below 1 MiB")]
pub struct DoesNotFit;

/// Writes the tables and returns the address of the RSDP.
pub fn write(memory: &dyn GuestMemory, ram_size: u64, cpus: u32) -> Result<u64, DoesNotFit> {
    let rsdp = layout::ACPI.start;
    let mut next = rsdp + 64;
    let mut put = |bytes: &[u8]| {
        // The FACS must be 64-byte aligned; so is everything.
        let at = next;
        let end = at
            .checked_add(bytes.len() as u64)
            .filter(|end| *end <= layout::ACPI.end);
        next = end.ok_or(DoesNotFit)?.next_multiple_of(64);
        memory.write(at, bytes).ok_or(DoesNotFit)?;
        Ok::<u64, DoesNotFit>(at)
    };
    let dsdt = put(dsdt(ram_size).as_slice())?;
    let facs = put(&bytes(&FACS::new()))?;
    let fadt = put(&bytes(&fadt(dsdt, facs)))?;
    let madt = put(&bytes(&madt(cpus)))?;
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, OEM_REVISION);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = put(&bytes(&xsdt))?;
    memory
        .write(rsdp, &bytes(&Rsdp::new(OEM, xsdt)))
        .ok_or(DoesNotFit)?;
    Ok(rsdp)
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn io_register(port: u16, bits: u8, access: gas::AccessSize) -> gas::GAS {
    gas::GAS::new(gas::AddressSpace::SystemIo, bits, 0, access, port.into())
}

fn fadt(dsdt: u64, facs: u64) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, OEM_REVISION)
        .dsdt_64(dsdt)
        .firmware_ctrl_32(facs as u32)
        .flag(Flags::Wbinvd)
        .flag(Flags::ProcC1)
        // No fixed power and sleep buttons.
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::ResetRegSup);
    // Older readers look at the 32-bit address.
    fadt.dsdt = (dsdt as u32).into();
    fadt.sci_int = layout::SCI_GSI.into();
    fadt.pm1a_evt_blk = u32::from(layout::PM1A_EVENT).into();
    fadt.pm1_evt_len = 4;
    fadt.pm1a_cnt_blk = u32::from(layout::PM1A_CONTROL).into();
    fadt.pm1_cnt_len = 2;
    fadt.x_pm1a_evt_blk = io_register(layout::PM1A_EVENT, 32, gas::AccessSize::WordAccess);
    fadt.x_pm1a_cnt_blk = io_register(layout::PM1A_CONTROL, 16, gas::AccessSize::WordAccess);
    fadt.iapc_boot_arch = BOOT_ARCHITECTURE.into();
    fadt.reset_reg = io_register(layout::RESET_PORT, 8, gas::AccessSize::ByteAccess);
    fadt.reset_value = layout::RESET_VALUE;
    fadt.finalize()
}

fn madt(cpus: u32) -> MADT {
    let mut madt = MADT::new(
        OEM,
        OEM_TABLE,
        OEM_REVISION,
        LocalInterruptController::Address(layout::LOCAL_APIC),
    );
    // A machine has at most 255 processors, see `machine::MAX_CPUS`.
    for cpu in 0..cpus as u8 {
        madt.add_structure(ProcessorLocalApic::new(cpu, cpu, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(0, layout::IOAPIC, 0));
    madt
}

/// Terms that are in their binary form already.
struct Ready(Vec<u8>);

impl Aml for Ready {
    fn to_aml_bytes(&self, sink: &mut dyn AmlSink) {
        sink.vec(&self.0);
    }
}

/// The device of a 16550.
fn com_port(index: usize, name: &str) -> Ready {
    let port = layout::SERIAL_PORTS[index];
    let hid = Name::new(Path::new("_HID"), &EISAName::new("PNP0501"));
    let io = IO::new(port, port, 1, 8);
    let interrupt = Interrupt::new(true, true, false, false, layout::SERIAL_GSIS[index]);
    let resources = ResourceTemplate::new(vec![&io, &interrupt]);
    let crs = Name::new(Path::new("_CRS"), &resources);
    let uid = Name::new(Path::new("_UID"), &(index as u8));
    Ready(bytes(&Device::new(Path::new(name), vec![&hid, &uid, &crs])))
}

fn dsdt(ram_size: u64) -> Sdt {
    let (com1, com2) = (com_port(0, "COM1"), com_port(1, "COM2"));

    let vmbus_hid = Name::new(Path::new("_HID"), &"VMBUS");
    let vmbus_uid = Name::new(Path::new("_UID"), &0u8);
    let vmbus_name = Name::new(Path::new("_DDN"), &"VMBUS");
    let vmbus_status = Name::new(Path::new("_STA"), &0xFu8);
    let no_resources = ResourceTemplate::new(vec![]);
    let vmbus_crs = Name::new(Path::new("_CRS"), &no_resources);
    let vmbus = Device::new(
        Path::new("VMBS"),
        vec![
            &vmbus_hid,
            &vmbus_uid,
            &vmbus_name,
            &vmbus_status,
            &vmbus_crs,
        ],
    );

    let low = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        layout::MMIO_LOW.start as u32,
        (layout::MMIO_LOW.end - 1) as u32,
        None,
    );
    let window = layout::mmio_high(ram_size);
    let high = AddressSpace::new_memory(
        AddressSpaceCacheable::NotCacheable,
        true,
        window.start,
        window.end - 1,
        None,
    );
    // A generic container ("module device"): its windows are its children's.
    let module_hid = Name::new(Path::new("_HID"), &"ACPI0004");
    let module_uid = Name::new(Path::new("_UID"), &0u8);
    let windows = ResourceTemplate::new(vec![&low, &high]);
    let module_crs = Name::new(Path::new("_CRS"), &windows);
    let module = Device::new(
        Path::new("VMOD"),
        vec![&module_hid, &module_uid, &module_crs, &vmbus],
    );

    let devices = Scope::new(Path::new("\\_SB_"), vec![&com1, &com2, &module]);
    let s5_package = Package::new(vec![&SLEEP_TYPE_S5, &SLEEP_TYPE_S5, &0u8, &0u8]);
    let s5 = Name::new(Path::new("\\_S5_"), &s5_package);

    // The header's length field is kept by `append_slice`.
    const HEADER: u32 = 36;
    let mut table = Sdt::new(*b"DSDT", HEADER, 6, OEM, OEM_TABLE, OEM_REVISION);
    table.append_slice(&bytes(&devices));
    table.append_slice(&bytes(&s5));
    table
}

#[cfg(test)]
mod tests {
    use vm_memory::{GuestAddress, GuestMemoryMmap};

    use super::*;

    fn u32_at(bytes: &[u8], at: usize) -> u32 {
        u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
    }

    fn u64_at(bytes: &[u8], at: usize) -> u64 {
        u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
    }

    fn read(memory: &GuestMemoryMmap<()>, at: u64, length: usize) -> Vec<u8> {
        let mut bytes = vec![0; length];
        memory.read(at, &mut bytes).unwrap();
        bytes
    }

    /// A table at `at`, whose signature and checksum are right.
    fn table(memory: &GuestMemoryMmap<()>, at: u64, signature: &[u8; 4]) -> Vec<u8> {
        let header = read(memory, at, 8);
        assert_eq!(&header[..4], signature);
        let table = read(memory, at, u32_at(&header, 4) as usize);
        let sum = table.iter().fold(0u8, |sum, byte| sum.wrapping_add(*byte));
        assert_eq!(sum, 0, "checksum of {}", String::from_utf8_lossy(signature));
        table
    }

    #[test]
    fn a_guest_finds_its_way_from_the_rsdp_to_vmbus() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 2 << 20)]).unwrap();
        let rsdp_at = write(&memory, 512 * layout::MIB, 255).unwrap();
        assert!(layout::ACPI.contains(&rsdp_at) && rsdp_at.is_multiple_of(16));
        let rsdp = read(&memory, rsdp_at, 36);
        assert_eq!(&rsdp[..8], b"RSD PTR ");
        let xsdt = table(&memory, u64_at(&rsdp, 24), b"XSDT");
        assert_eq!(xsdt.len(), 36 + 16);
        let fadt = table(&memory, u64_at(&xsdt, 36), b"FACP");
        let madt = table(&memory, u64_at(&xsdt, 44), b"APIC");
        assert_eq!(madt.iter().len(), 44 + 255 * 8 + 12);
        let dsdt = table(&memory, u64_at(&fadt, 140), b"DSDT");
        assert_eq!(u64::from(u32_at(&fadt, 40)), u64_at(&fadt, 140));
        assert_eq!(&read(&memory, u32_at(&fadt, 36).into(), 4), b"FACS");
        for name in [&b"VMBUS"[..], b"VMOD", b"COM1", b"COM2", b"_S5_", b"_CRS"] {
            assert!(dsdt.windows(name.len()).any(|w| w == name));
        }
    }
}

//! A ring's memory as plain cells, for tests in one thread.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use vmbus_proto::ring::{Control, RingMemory};

#[derive(Clone)]
pub struct Cells {
    pub control: Rc<[Cell<u32>; 32]>,
    pub data: Rc<RefCell<Vec<u8>>>,
}

impl Cells {
    pub fn new(size: u32) -> Self {
        Self {
            control: Rc::default(),
            data: Rc::new(RefCell::new(vec![0xEE; size as usize])),
        }
    }

    pub fn get(&self, field: Control) -> u32 {
        self.control[field.offset() / 4].get()
    }

    pub fn set(&self, field: Control, value: u32) {
        self.control[field.offset() / 4].set(value);
    }
}

impl RingMemory for Cells {
    fn data_size(&self) -> u32 {
        self.data.borrow().len() as u32
    }
    fn load(&self, field: Control) -> u32 {
        self.get(field)
    }
    fn store(&self, field: Control, value: u32) {
        self.set(field, value);
    }
    fn read(&self, offset: u32, to: &mut [u8]) {
        let at = offset as usize;
        to.copy_from_slice(&self.data.borrow()[at..at + to.len()]);
    }
    fn write(&self, offset: u32, from: &[u8]) {
        let at = offset as usize;
        self.data.borrow_mut()[at..at + from.len()].copy_from_slice(from);
    }
}

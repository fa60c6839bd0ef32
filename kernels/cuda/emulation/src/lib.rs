//! The CUDA kernels on the CPU: the same sources, compiled as C++, behind the same trait as a GPU.
//!
//! It is slow, and it is for tests. What it checks besides results: no thread is waited for that never comes, nothing is
//! written beyond a buffer, no signed integer overflows and no access is misaligned (the last two stop the process), and,
//! by running threads in opposite orders, that no result hangs on the order of threads.

use std::alloc::{Layout, alloc, dealloc};
use std::collections::BTreeMap;
use std::ffi::{CStr, CString, c_char, c_int};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use lockstep_cuda::device::{Device, DeviceError};
use lockstep_cuda::params::TensorMap;
use lockstep_cuda::plan::{Launch, Node, TensorBoxes};

unsafe extern "C" {
    fn lockstep_emulate(
        name: *const c_char,
        params: *const u64,
        params_len: usize,
        grid: *const u32,
        threads: u32,
        shared: u32,
        descending: bool,
    ) -> c_int;
    fn lockstep_emulated_kernel(index: u32) -> *const c_char;
}

/// Names of all kernels that were compiled.
pub fn kernels() -> Vec<String> {
    // SAFETY: returns a string that is never freed, or null.
    let names = (0..).map(|index| unsafe { lockstep_emulated_kernel(index) }).take_while(|name| !name.is_null());
    // SAFETY: not null, see above.
    names.map(|name| unsafe { CStr::from_ptr(name) }.to_string_lossy().into_owned()).collect()
}

/// In which order blocks, and threads between barriers, run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Order {
    /// From 0 on.
    Ascending,
    /// The other way round.
    Descending,
}

/// Bytes before and after a buffer that no kernel may write.
const GUARD: usize = 256;
/// What is in them.
const GUARD_BYTE: u8 = 0xa5;
/// How a map of a tensor begins.
const TENSOR_MARK: u64 = 0x6c6f_636b_7374_6570;
/// What is in new memory.
const NEW_BYTE: u8 = 0xcd;

/// A device whose memory is the host's.
pub struct Emulation {
    order: Order,
    capability: (u32, u32),
    /// Whether it refuses to record launches.
    refuses_graphs: bool,
    memory: Mutex<Memory>,
    graphs: Mutex<BTreeMap<u64, Arc<Recorded>>>,
}

/// Allocations by address.
#[derive(Default)]
struct Memory {
    held: BTreeMap<u64, Held>,
    /// Allocations that there have ever been.
    made: u64,
}

/// One allocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Held {
    bytes: usize,
    /// How many were made before it: two that lie at the same place one after the other are not the same.
    number: u64,
}

/// Launches, and the allocations that they name.
struct Recorded {
    nodes: Vec<Node>,
    names: Vec<(u64, Held)>,
}

impl Emulation {
    /// One that runs threads in that order, and says that it has that compute capability.
    pub fn new(order: Order, capability: (u32, u32)) -> Self {
        Self { order, capability, refuses_graphs: false, memory: Mutex::default(), graphs: Mutex::default() }
    }

    /// The same, but it refuses to record launches.
    #[must_use]
    pub fn refusing_graphs(mut self) -> Self {
        self.refuses_graphs = true;
        self
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        lock(&self.memory)
    }

    /// The bytes `at..at + bytes` if they lie in one allocation.
    fn place(&self, call: &str, at: u64, bytes: usize) -> Result<*mut u8, DeviceError> {
        let end = at.checked_add(bytes as u64);
        let within = |(start, held): (u64, Held)| end.is_some_and(|end| end <= start + held.bytes as u64);
        if self.memory().around(at).is_some_and(within) {
            Ok(std::ptr::with_exposed_provenance_mut(at as usize))
        } else {
            Err(DeviceError { call: call.into(), reason: format!("{bytes} bytes at {at:#x} are not in one buffer") })
        }
    }

    /// Bytes that are allocated now.
    pub fn allocated(&self) -> usize {
        self.memory().held.values().map(|held| held.bytes).sum()
    }

    /// A tensor as `emulate/cpp` knows it, held to what the driver asks of one.
    fn tensor_map(&self, boxes: &TensorBoxes) -> Result<TensorMap, DeviceError> {
        let refuse = |reason: &str| Err(DeviceError { call: format!("map of {boxes:?}"), reason: reason.into() });
        if !boxes.address.is_multiple_of(16) || boxes.strides().iter().any(|stride| !stride.is_multiple_of(16)) {
            return refuse("address and strides are multiples of 16 bytes");
        }
        if boxes.box_extent().iter().any(|n| !(1..=256).contains(n)) || boxes.extent().contains(&0) {
            return refuse("a box has 1 to 256 elements along each dimension, a tensor at least one");
        }
        self.place("map of a tensor", boxes.address, boxes.bytes() as usize)?;
        let mut words = [0; 16];
        let [codes, digits, rows] = boxes.extent();
        words[..6].copy_from_slice(&[TENSOR_MARK, boxes.address, codes, digits, rows, boxes.box_rows.into()]);
        Ok(TensorMap { words })
    }

    fn check_guards(&self, kernel: &str) -> Result<(), DeviceError> {
        for (address, Held { bytes, .. }) in &self.memory().held {
            let start = std::ptr::with_exposed_provenance::<u8>(*address as usize);
            // SAFETY: an allocation has its guards around it.
            let guards = unsafe {
                [
                    std::slice::from_raw_parts(start.sub(GUARD), GUARD),
                    std::slice::from_raw_parts(start.add(*bytes), GUARD),
                ]
            };
            if guards.iter().any(|guard| guard.iter().any(|b| *b != GUARD_BYTE)) {
                let reason = format!("wrote beyond the {bytes} bytes at {address:#x}");
                return Err(DeviceError { call: format!("kernel {kernel}"), reason });
            }
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Memory {
    /// The allocation that holds the byte at an address, or ends there, with its own address.
    fn around(&self, at: u64) -> Option<(u64, Held)> {
        let (start, held) = self.held.range(..=at).next_back()?;
        (at <= start + held.bytes as u64).then_some((*start, *held))
    }
}

impl Recorded {
    /// Whatever word of a parameter is an address in an allocation is taken for a pointer to it.
    fn new(nodes: &[Node], memory: &Memory) -> Self {
        let words = nodes.iter().flat_map(|node| &node.launch.params);
        let names: BTreeMap<u64, Held> = words.filter_map(|word| memory.around(*word)).collect();
        Self { nodes: nodes.to_vec(), names: names.into_iter().collect() }
    }

    /// The launches as they are listed, or each one as late as the others allow.
    fn in_order(&self, order: Order) -> Vec<&Launch> {
        let mut left: Vec<usize> = (0..self.nodes.len()).collect();
        let mut launches = Vec::new();
        while !left.is_empty() {
            let is_ready = |n: &usize| self.nodes[*n].after.is_none_or(|after| !left.contains(&after));
            let ready = match order {
                Order::Ascending => left.iter().position(is_ready),
                Order::Descending => left.iter().rposition(is_ready),
            };
            let next = left.remove(ready.expect("each waits for an earlier one"));
            launches.push(&self.nodes[next].launch);
        }
        launches
    }
}

fn layout(bytes: usize) -> Layout {
    Layout::from_size_align(bytes + 2 * GUARD, GUARD).expect("sizes of tests")
}

impl Drop for Emulation {
    fn drop(&mut self) {
        let addresses: Vec<u64> = self.memory().held.keys().copied().collect();
        addresses.into_iter().for_each(|address| self.free(address));
    }
}

impl Device for Emulation {
    fn name(&self) -> String {
        format!("the CPU, {:?}", self.order).to_lowercase()
    }

    fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// Few, so that a block that takes tiles until there are no more has several.
    fn processors(&self) -> u32 {
        2
    }

    fn allocate(&self, bytes: usize) -> Result<u64, DeviceError> {
        // SAFETY: the layout is not empty, and all that is written lies in it.
        let start = unsafe {
            let base = alloc(layout(bytes));
            if base.is_null() {
                let call = format!("allocating {bytes} bytes");
                return Err(DeviceError { call, reason: "the host has no more".into() });
            }
            base.write_bytes(GUARD_BYTE, bytes + 2 * GUARD);
            let start = base.add(GUARD);
            start.write_bytes(NEW_BYTE, bytes);
            start
        };
        let address = start.expose_provenance() as u64;
        let mut memory = self.memory();
        let number = memory.made;
        memory.made += 1;
        memory.held.insert(address, Held { bytes, number });
        Ok(address)
    }

    fn free(&self, address: u64) {
        let Held { bytes, .. } = self.memory().held.remove(&address).expect("memory is freed once");
        // SAFETY: allocated with this layout, which begins a guard before the address.
        unsafe { dealloc(std::ptr::with_exposed_provenance_mut::<u8>(address as usize).sub(GUARD), layout(bytes)) };
    }

    fn upload(&self, to: u64, bytes: &[u8]) -> Result<(), DeviceError> {
        let place = self.place("upload", to, bytes.len())?;
        // SAFETY: the place is as long, and no slice of the host's lies in an allocation.
        unsafe { place.copy_from_nonoverlapping(bytes.as_ptr(), bytes.len()) };
        Ok(())
    }

    fn download(&self, from: u64, bytes: &mut [u8]) -> Result<(), DeviceError> {
        let place = self.place("download", from, bytes.len())?;
        // SAFETY: as in `upload`.
        unsafe { bytes.as_mut_ptr().copy_from_nonoverlapping(place, bytes.len()) };
        Ok(())
    }

    fn copy(&self, from: u64, to: u64, bytes: usize) -> Result<(), DeviceError> {
        let (from, to) = (self.place("copy", from, bytes)?, self.place("copy", to, bytes)?);
        // SAFETY: both places are as long.
        unsafe { to.copy_from(from, bytes) };
        Ok(())
    }

    fn zero(&self, at: u64, bytes: usize) -> Result<(), DeviceError> {
        let place = self.place("zero", at, bytes)?;
        // SAFETY: the place is as long.
        unsafe { place.write_bytes(0, bytes) };
        Ok(())
    }

    fn launch(&self, launch: &Launch) -> Result<(), DeviceError> {
        let refuse = |reason: &str| DeviceError { call: format!("kernel {}", launch.kernel), reason: reason.into() };
        let name = CString::new(launch.kernel).map_err(|_| refuse("its name has a zero"))?;
        if launch.grid.contains(&0) {
            return Err(refuse("the grid is empty"));
        }
        let descending = self.order == Order::Descending;
        let params = launch.params_with_maps(|boxes| self.tensor_map(boxes))?;
        let (len, grid) = (size_of_val(&params[..]), launch.grid.as_ptr());
        // SAFETY: name, parameters and grid are read as long as they are. The kernel reads and writes at the addresses in its
        // parameters, which are of this device's buffers; the guards tell where one goes astray.
        let code = unsafe {
            let (threads, shared) = (launch.threads, launch.shared);
            lockstep_emulate(name.as_ptr(), params.as_ptr(), len, grid, threads, shared, descending)
        };
        match code {
            0 => self.check_guards(launch.kernel),
            1 => Err(refuse("there is none of that name")),
            2 => Err(refuse("its blocks have another number of threads")),
            3 => Err(refuse("its parameters have another size")),
            _ => Err(refuse("a block does not have so much shared memory")),
        }
    }

    fn record(&self, nodes: &[Node]) -> Result<u64, DeviceError> {
        let refuse =
            |reason: &str| DeviceError { call: format!("graph of {} launches", nodes.len()), reason: reason.into() };
        if self.refuses_graphs {
            return Err(refuse("this device has no graphs"));
        }
        if nodes.iter().enumerate().any(|(n, node)| node.after.is_some_and(|after| after >= n)) {
            return Err(refuse("a launch waits for a later one"));
        }
        let recorded = Recorded::new(nodes, &self.memory());
        let mut graphs = lock(&self.graphs);
        let id = graphs.last_key_value().map_or(0, |(id, _)| id + 1);
        graphs.insert(id, Arc::new(recorded));
        Ok(id)
    }

    /// Runs the launches as they were recorded, on what is in memory now. All memory that they name must be there still.
    fn replay(&self, graph: u64) -> Result<(), DeviceError> {
        let refuse = |reason: String| DeviceError { call: format!("graph {graph}"), reason };
        let recorded = lock(&self.graphs).get(&graph).cloned().ok_or_else(|| refuse("there is none".into()))?;
        let is_gone = |(address, held): &&(u64, Held)| self.memory().held.get(address) != Some(held);
        if let Some((address, held)) = recorded.names.iter().find(is_gone) {
            return Err(refuse(format!("the {} bytes at {address:#x} were given back", held.bytes)));
        }
        recorded.in_order(self.order).into_iter().try_for_each(|launch| self.launch(launch))
    }

    fn forget(&self, graph: u64) {
        lock(&self.graphs).remove(&graph).expect("a graph is given back once");
    }
}

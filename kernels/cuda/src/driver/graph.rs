//! Graphs: launches that the driver is told of once, and starts as one.

use std::ffi::c_void;

use cudarc::driver::{result, sys};

use super::{Driver, allow_shared, failed, tensor_map};
use crate::device::DeviceError;
use crate::plan::{Launch, Node};

impl Driver {
    /// A graph of launches, ready to be started.
    pub(super) fn graph_of(&self, nodes: &[Node]) -> Result<sys::CUgraphExec, DeviceError> {
        self.enter()?;
        let mut graph: sys::CUgraph = std::ptr::null_mut();
        // SAFETY: writes one handle to where it is told.
        unsafe { sys::cuGraphCreate(&raw mut graph, 0) }.result().map_err(failed("cuGraphCreate"))?;
        let made = self.add_launches(graph, nodes).and_then(|()| {
            // SAFETY: the graph was just made, and its nodes are of kernels that stay loaded.
            unsafe { result::graph::instantiate(graph, sys::CUgraphInstantiate_flags(0)) }
                .map_err(failed(format!("cuGraphInstantiate of {} launches", nodes.len())))
        });
        // SAFETY: what was instantiated does not need it any more, and nobody else has it.
        let destroyed = unsafe { result::graph::destroy(graph) }.map_err(failed("cuGraphDestroy"));
        let made = made?;
        if let Err(why) = destroyed {
            self.destroy_graph(made);
            return Err(why);
        }
        Ok(made)
    }

    fn add_launches(&self, graph: sys::CUgraph, nodes: &[Node]) -> Result<(), DeviceError> {
        let mut added: Vec<sys::CUgraphNode> = Vec::with_capacity(nodes.len());
        for node in nodes {
            added.push(self.add_launch(graph, node.after.map(|after| added[after]), &node.launch)?);
        }
        Ok(())
    }

    fn add_launch(
        &self,
        graph: sys::CUgraph,
        after: Option<sys::CUgraphNode>,
        launch: &Launch,
    ) -> Result<sys::CUgraphNode, DeviceError> {
        let kernel = self.kernel(launch.kernel)?;
        allow_shared(kernel, launch)?;
        let [x, y, z] = launch.grid;
        let params = launch.params_with_maps(tensor_map)?;
        let mut argument = params.as_ptr().cast_mut().cast::<c_void>();
        let node = sys::CUDA_KERNEL_NODE_PARAMS {
            func: kernel,
            gridDimX: x,
            gridDimY: y,
            gridDimZ: z,
            blockDimX: launch.threads,
            blockDimY: 1,
            blockDimZ: 1,
            sharedMemBytes: launch.shared,
            kernelParams: &raw mut argument,
            extra: std::ptr::null_mut(),
            kern: std::ptr::null_mut(),
            ctx: std::ptr::null_mut(),
        };
        let mut added: sys::CUgraphNode = std::ptr::null_mut();
        let dependencies = after.as_slice();
        // SAFETY: the kernel has one parameter, the struct whose bytes `params` holds; the driver copies it before this returns.
        // The list has as many nodes as is said, all of this graph.
        let call = unsafe {
            let (list, count) = (dependencies.as_ptr(), dependencies.len());
            sys::cuGraphAddKernelNode_v2(&raw mut added, graph, list, count, &raw const node)
        };
        call.result()
            .map_err(failed(format!("cuGraphAddKernelNode of {} with grid {x} x {y} x {z}", launch.kernel)))?;
        Ok(added)
    }

    pub(super) fn start_graph(&self, graph: sys::CUgraphExec) -> Result<(), DeviceError> {
        self.enter()?;
        // SAFETY: the graph is one that `graph_of` gave; who owns it keeps the memory that it names.
        unsafe { result::graph::launch(graph, self.stream) }.map_err(failed("cuGraphLaunch"))
    }

    /// One that still runs is given back when it has ended.
    pub(super) fn destroy_graph(&self, graph: sys::CUgraphExec) {
        if self.enter().is_ok() {
            // SAFETY: the graph is one that `graph_of` gave, and nobody starts it again. An error of an earlier launch shows at
            // the next call that can report it.
            let _ = unsafe { result::graph::exec_destroy(graph) };
        }
    }
}

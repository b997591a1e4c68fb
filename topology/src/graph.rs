//! The fabric as a graph: what importers build, operators edit and people are shown.
//!
//! petgraph reuses the index of a removed vertex, so vertices carry an id of our own that is never
//! given twice. Never on the hot path: that is the flat index.

use std::collections::BTreeMap;

use petgraph::Undirected;
use petgraph::stable_graph::{NodeIndex, StableGraph};
use petgraph::visit::EdgeRef;

use crate::{FabricRecord, InventoryError, NodeRecord};

/// The graph type, for those who want to walk it with petgraph's own algorithms.
pub type FabricGraph = StableGraph<Vertex, Link, Undirected>;

/// A vertex's own id: given in order of creation, never given again after a removal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VertexId(pub u32);

/// A thing in the fabric.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vertex {
    /// Stays with the vertex for good.
    pub id: VertexId,
    /// What it is, and its name.
    pub kind: VertexKind,
}

/// What a vertex is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VertexKind {
    /// One place, one network.
    Site(String),
    /// A second-tier switch.
    Spine(String),
    /// A first-tier switch.
    Leaf(String),
    /// A rack; its site is the vertex that contains it.
    Rack(String),
    /// GPUs that reach each other over NVLink; on HGX machines it bears the node's name.
    NvlinkDomain(String),
    /// A machine.
    Node {
        /// Its name.
        name: String,
        /// Its place in the record's list of nodes.
        record: u32,
    },
    /// One GPU, by its number within its node.
    Gpu(u16),
}

impl VertexKind {
    /// The name; GPUs have none of their own.
    pub fn name(&self) -> Option<&str> {
        match self {
            VertexKind::Site(name)
            | VertexKind::Spine(name)
            | VertexKind::Leaf(name)
            | VertexKind::Rack(name)
            | VertexKind::NvlinkDomain(name)
            | VertexKind::Node { name, .. } => Some(name),
            VertexKind::Gpu(_) => None,
        }
    }
}

/// A connection between two vertices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Link {
    /// What it is made of.
    pub kind: LinkKind,
    /// One direction, all cables together, where known; containment carries nothing.
    pub bandwidth_gbps: Option<u32>,
    /// Whether it works.
    pub health: Health,
    /// Cables side by side: a leaf often reaches a spine over several.
    pub cables: u16,
    /// Node to leaf: the NIC, as its place in the node's list of leafs. It differs from the order
    /// of the rails where two NICs are swapped.
    pub nic: Option<u8>,
}

impl Link {
    /// One cable that works.
    pub(crate) fn new(kind: LinkKind, bandwidth_gbps: Option<u32>) -> Link {
        Link { kind, bandwidth_gbps, health: Health::Up, cables: 1, nic: None }
    }
}

/// What a link is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum LinkKind {
    /// GPU to its NVLink domain.
    NvLink,
    /// Node to leaf, by the rail's number.
    Rail(u8),
    /// Leaf to spine.
    Uplink,
    /// Site to rack, rack to node, node to GPU: no cable.
    Contains,
}

/// Whether a link works.
#[derive(
    Clone,
    Copy,
    Debug,
    Default,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    serde::Serialize,
    serde::Deserialize,
    schemars::JsonSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Health {
    /// As it should be.
    #[default]
    Up,
    /// Slow or flapping.
    Degraded,
    /// Carries nothing.
    Down,
}

/// The graph of one record.
#[derive(Clone, Debug, Default)]
pub struct Fabric {
    graph: FabricGraph,
    /// By `VertexId`; `None` once removed.
    by_id: Vec<Option<NodeIndex>>,
    /// The node vertices, in the record's order.
    nodes: Vec<VertexId>,
}

impl Fabric {
    /// Builds the graph; the record passes `check_limits` first.
    pub fn from_record(record: &FabricRecord) -> Result<Fabric, InventoryError> {
        record.check_limits()?;
        Ok(Builder::new(record).build(record))
    }

    /// The graph itself, to walk.
    pub fn graph(&self) -> &FabricGraph {
        &self.graph
    }

    /// The vertex with this id, unless it was removed.
    pub fn vertex(&self, id: VertexId) -> Option<&Vertex> {
        self.index(id).map(|index| &self.graph[index])
    }

    /// The vertex of the record's node number `record_index`.
    pub fn node(&self, record_index: usize) -> VertexId {
        self.nodes[record_index]
    }

    /// The neighbours of `id` over links of which `wanted` holds, in ascending order of id.
    pub fn neighbours(&self, id: VertexId, wanted: impl Fn(LinkKind) -> bool) -> Vec<VertexId> {
        let Some(index) = self.index(id) else { return Vec::new() };
        let mut found: Vec<VertexId> = self
            .graph
            .edges(index)
            .filter(|edge| wanted(edge.weight().kind))
            .map(|edge| self.graph[edge.target()].id)
            .collect();
        found.sort_unstable();
        found
    }

    /// How many tiers of network switches lie between two nodes: 0 within a node or an NVLink
    /// domain, 1 over a leaf, 2 over a spine; `None` where they meet in no switch of the record.
    pub fn distance(&self, a: VertexId, b: VertexId) -> Option<u8> {
        let meet = |x: &[VertexId], y: &[VertexId]| x.iter().any(|v| y.binary_search(v).is_ok());
        if a == b || meet(&[self.nvlink_domain(a)?], &[self.nvlink_domain(b)?]) {
            return Some(0);
        }
        let (leafs_a, leafs_b) = (self.leafs(a), self.leafs(b));
        if meet(&leafs_a, &leafs_b) {
            return Some(1);
        }
        meet(&self.spines_of(&leafs_a), &self.spines_of(&leafs_b)).then_some(2)
    }

    /// Takes a vertex and its links out of the graph; its id is never given again.
    pub fn remove(&mut self, id: VertexId) -> Option<Vertex> {
        let index = self.by_id.get_mut(id.0 as usize)?.take()?;
        self.graph.remove_node(index)
    }

    /// Sets the health of every link between two vertices; returns how many there are.
    pub fn set_health(&mut self, a: VertexId, b: VertexId, health: Health) -> usize {
        let (Some(from), Some(to)) = (self.index(a), self.index(b)) else { return 0 };
        let links: Vec<_> = self.graph.edges_connecting(from, to).map(|edge| edge.id()).collect();
        for link in &links {
            self.graph[*link].health = health;
        }
        links.len()
    }

    /// The links at a vertex, with what they lead to.
    pub(crate) fn links(&self, id: VertexId) -> impl Iterator<Item = (VertexId, &Link)> {
        let edges = self.index(id).into_iter().flat_map(|index| self.graph.edges(index));
        edges.map(|edge| (self.graph[edge.target()].id, edge.weight()))
    }

    /// Changes every link of `id` that `change` cares to.
    pub(crate) fn change_links(
        &mut self,
        id: VertexId,
        mut change: impl FnMut(VertexId, &mut Link),
    ) {
        let Some(index) = self.index(id) else { return };
        let edges: Vec<_> =
            self.graph.edges(index).map(|edge| (edge.id(), edge.target())).collect();
        for (edge, target) in edges {
            let target = self.graph[target].id;
            change(target, &mut self.graph[edge]);
        }
    }

    /// The leafs a node hangs on.
    pub(crate) fn leafs(&self, node: VertexId) -> Vec<VertexId> {
        self.neighbours(node, |kind| matches!(kind, LinkKind::Rail(_)))
    }

    /// The spines that any of the leafs reaches, each once.
    pub(crate) fn spines_of(&self, leafs: &[VertexId]) -> Vec<VertexId> {
        let uplinks = |leaf: &VertexId| self.neighbours(*leaf, |kind| kind == LinkKind::Uplink);
        let mut spines: Vec<VertexId> = leafs.iter().flat_map(uplinks).collect();
        spines.sort_unstable();
        spines.dedup();
        spines
    }

    /// The NVLink domain of a node, through its first GPU.
    pub(crate) fn nvlink_domain(&self, node: VertexId) -> Option<VertexId> {
        let index = self.index(node)?;
        let is_gpu = |other: &NodeIndex| matches!(self.graph[*other].kind, VertexKind::Gpu(_));
        let gpu = self.graph.neighbors(index).find(is_gpu)?;
        let link = self.graph.edges(gpu).find(|edge| edge.weight().kind == LinkKind::NvLink)?;
        Some(self.graph[link.target()].id)
    }

    /// The kinds of all links at a vertex.
    pub(crate) fn link_kinds(&self, id: VertexId) -> impl Iterator<Item = LinkKind> {
        let index = self.index(id);
        index.into_iter().flat_map(|index| self.graph.edges(index)).map(|edge| edge.weight().kind)
    }

    /// The site that holds a node, through its rack where it has one. What contains something was
    /// created before it.
    pub(crate) fn site(&self, node: VertexId) -> Option<VertexId> {
        let parent = |index: NodeIndex| {
            let above = |other: &NodeIndex| self.graph[*other].id < self.graph[index].id;
            let mut links = self.graph.edges(index);
            let link = links.find(|e| e.weight().kind == LinkKind::Contains && above(&e.target()));
            link.map(|edge| edge.target())
        };
        let place = parent(self.index(node)?)?;
        let site = match self.graph[place].kind {
            VertexKind::Rack(_) => parent(place)?,
            _ => place,
        };
        Some(self.graph[site].id)
    }

    /// The vertex's name, for sentences.
    pub(crate) fn name(&self, id: VertexId) -> &str {
        self.vertex(id).and_then(|vertex| vertex.kind.name()).unwrap_or("?")
    }

    /// All vertices that are in the graph, in order of creation.
    pub(crate) fn vertices(&self) -> impl Iterator<Item = &Vertex> {
        self.by_id.iter().flatten().map(|index| &self.graph[*index])
    }

    fn index(&self, id: VertexId) -> Option<NodeIndex> {
        self.by_id.get(id.0 as usize).copied().flatten()
    }
}

/// A fabric being built, with the names seen so far.
struct Builder<'a> {
    fabric: Fabric,
    sites: BTreeMap<&'a str, NodeIndex>,
    racks: BTreeMap<(&'a str, &'a str), NodeIndex>,
    domains: BTreeMap<&'a str, NodeIndex>,
    leafs: BTreeMap<&'a str, (NodeIndex, Option<u8>)>,
}

impl<'a> Builder<'a> {
    fn new(record: &FabricRecord) -> Builder<'a> {
        let gpus: usize = record.nodes.iter().map(|node| usize::from(node.gpu_count)).sum();
        let links: usize = record.nodes.iter().map(|node| 1 + node.leafs.len()).sum();
        let vertices = gpus + 2 * record.nodes.len() + 2 * record.leafs.len();
        let fabric = Fabric {
            graph: FabricGraph::with_capacity(vertices, links + 2 * gpus),
            by_id: Vec::with_capacity(vertices),
            nodes: Vec::with_capacity(record.nodes.len()),
        };
        Builder {
            fabric,
            sites: BTreeMap::new(),
            racks: BTreeMap::new(),
            domains: BTreeMap::new(),
            leafs: BTreeMap::new(),
        }
    }

    fn build(mut self, record: &'a FabricRecord) -> Fabric {
        self.add_switches(record);
        // Neighbours mostly share their leafs: look a list of names up only when it changes.
        let mut names: &[String] = &[];
        let mut leafs: Vec<(NodeIndex, u8)> = Vec::new();
        for (at, node) in record.nodes.iter().enumerate() {
            if node.leafs != names {
                names = &node.leafs;
                leafs = names.iter().enumerate().map(|(i, name)| self.rail(i, name)).collect();
            }
            self.add_node(at, node, &leafs);
        }
        self.fabric
    }

    fn add_switches(&mut self, record: &'a FabricRecord) {
        let mut spines = BTreeMap::new();
        for spine in &record.spines {
            spines.insert(spine.as_str(), self.add(VertexKind::Spine(spine.clone())));
        }
        for leaf in &record.leafs {
            let index = self.add(VertexKind::Leaf(leaf.name.clone()));
            self.leafs.insert(&leaf.name, (index, leaf.rail));
            for spine in &leaf.spines {
                self.link(index, spines[spine.as_str()], LinkKind::Uplink, None);
            }
        }
    }

    /// The leaf of a name and its rail: as declared, else the name's place in the node's list.
    fn rail(&self, place: usize, leaf: &str) -> (NodeIndex, u8) {
        let (index, rail) = self.leafs[leaf];
        (index, rail.unwrap_or(place as u8))
    }

    fn add_node(&mut self, at: usize, node: &'a NodeRecord, leafs: &[(NodeIndex, u8)]) {
        let parent = self.place_of(node);
        let index = self.add(VertexKind::Node { name: node.name.clone(), record: at as u32 });
        self.fabric.nodes.push(self.fabric.graph[index].id);
        self.link(parent, index, LinkKind::Contains, None);
        let nic = nic_gbps(&node.nic_model);
        for (place, &(leaf, rail)) in leafs.iter().enumerate() {
            let link = Link { nic: Some(place as u8), ..Link::new(LinkKind::Rail(rail), nic) };
            self.fabric.graph.add_edge(index, leaf, link);
        }
        let domain = self.domain_of(node);
        let nvlink = nvlink_gbps(&node.gpu_model);
        for gpu in 0..node.gpu_count {
            let gpu = self.add(VertexKind::Gpu(gpu));
            self.link(index, gpu, LinkKind::Contains, None);
            self.link(gpu, domain, LinkKind::NvLink, nvlink);
        }
    }

    /// The rack that contains a node, or the site itself where racks are unknown.
    fn place_of(&mut self, node: &'a NodeRecord) -> NodeIndex {
        if let Some(&rack) = self.racks.get(&node.rack_key()) {
            return rack;
        }
        let site = match self.sites.get(node.site.as_str()) {
            Some(&site) => site,
            None => self.add(VertexKind::Site(node.site.clone())),
        };
        self.sites.insert(&node.site, site);
        if node.rack.is_empty() {
            return site;
        }
        let rack = self.add(VertexKind::Rack(node.rack.clone()));
        self.racks.insert(node.rack_key(), rack);
        self.link(site, rack, LinkKind::Contains, None);
        rack
    }

    fn domain_of(&mut self, node: &'a NodeRecord) -> NodeIndex {
        let Some(name) = &node.nvlink_domain else {
            return self.add(VertexKind::NvlinkDomain(node.name.clone()));
        };
        if let Some(&domain) = self.domains.get(name.as_str()) {
            return domain;
        }
        let domain = self.add(VertexKind::NvlinkDomain(name.clone()));
        self.domains.insert(name, domain);
        domain
    }

    fn add(&mut self, kind: VertexKind) -> NodeIndex {
        let id = VertexId(self.fabric.by_id.len() as u32);
        let index = self.fabric.graph.add_node(Vertex { id, kind });
        self.fabric.by_id.push(Some(index));
        index
    }

    fn link(&mut self, a: NodeIndex, b: NodeIndex, kind: LinkKind, bandwidth_gbps: Option<u32>) {
        self.fabric.graph.add_edge(a, b, Link::new(kind, bandwidth_gbps));
    }
}

/// One port, one direction, by the vendor's data sheets.
fn nic_gbps(model: &str) -> Option<u32> {
    let known = [("ConnectX-6", 200), ("ConnectX-7", 400), ("ConnectX-8", 800)];
    known.into_iter().find(|(name, _)| model.contains(name)).map(|(_, gbps)| gbps)
}

/// All links of one GPU, one direction: half of what the vendor's data sheets call bandwidth.
fn nvlink_gbps(model: &str) -> Option<u32> {
    let known = [
        ("A100", 2_400),
        ("H100", 3_600),
        ("H200", 3_600),
        ("GH200", 3_600),
        ("B200", 7_200),
        ("B300", 7_200),
    ];
    known.into_iter().find(|(name, _)| model.contains(name)).map(|(_, gbps)| gbps)
}

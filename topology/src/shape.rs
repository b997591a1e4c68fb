//! The immutable part of the flat index: which domains there are, and where each node stands.
//!
//! Derived from the graph once a record; shared by all clones of an index. Never counts anything.

use std::collections::BTreeMap;
use std::ops::Range;

use crate::hostlist::compress;
use crate::{Fabric, FabricRecord, Level, ModelId, VertexId};

/// One domain of one level.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// Unique on its level: a block is named after its leafs, a pod after its spines.
    pub name: String,
    /// Positions of its nodes.
    pub nodes: Range<u32>,
    /// Its parent's ordinal on the next coarser level; 0 for sites.
    pub parent: u32,
    /// Ordinals of its parts on the next finer level; empty for nodes.
    pub children: Range<u32>,
    /// Its cells, one a GPU model that occurs in it.
    pub(crate) cells: Range<u32>,
}

/// The domains of one level and each node's place among them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct LevelShape {
    pub(crate) domains: Vec<Domain>,
    /// By position: the ordinal of the node's domain.
    pub(crate) domain_of: Vec<u32>,
    /// By position: the cell that counts this node's GPUs in its domain.
    pub(crate) cell_of: Vec<u32>,
}

/// Who shares a rack, a power feed, a site: names and, by position, which of them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct FailureKind {
    pub(crate) names: Vec<String>,
    /// By position; `u32::MAX`: unknown for this node.
    pub(crate) of: Vec<u32>,
}

/// All that does not change while the fabric does not.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// By position: the place in the record.
    pub(crate) record_of: Vec<u32>,
    /// By place in the record: the position.
    pub(crate) pos_of: Vec<u32>,
    pub(crate) models: Vec<String>,
    pub(crate) model: Vec<ModelId>,
    pub(crate) gpu_count: Vec<u16>,
    /// In the order of `Level::ALL`.
    pub(crate) levels: [LevelShape; 5],
    /// By cell: the GPU model it counts.
    pub(crate) cell_model: Vec<ModelId>,
    pub(crate) failure: BTreeMap<String, FailureKind>,
    /// By key and value: positions, rising.
    pub(crate) labels: BTreeMap<String, BTreeMap<String, Vec<u32>>>,
}

impl Shape {
    pub(crate) fn derive(record: &FabricRecord, fabric: &Fabric) -> Shape {
        let paths = Paths::walk(record, fabric);
        let mut record_of: Vec<u32> = (0..record.nodes.len() as u32).collect();
        record_of.sort_by_key(|&at| paths.of[at as usize]);
        let mut pos_of = vec![0; record_of.len()];
        for (pos, &at) in record_of.iter().enumerate() {
            pos_of[at as usize] = pos as u32;
        }
        let mut models = Interner::default();
        let nodes = record_of.iter().map(|&at| &record.nodes[at as usize]);
        let model: Vec<ModelId> =
            nodes.clone().map(|node| ModelId(models.id(node.gpu_model.as_str()) as u16)).collect();
        let gpu_count = nodes.map(|node| node.gpu_count).collect();
        let mut cell_model = Vec::new();
        let levels = derive_levels(&paths, &record_of, &model, &mut cell_model);
        let failure = derive_failure(record, &record_of);
        let labels = derive_labels(record, &record_of);
        let models = models.in_order().into_iter().map(str::to_owned).collect();
        Shape { record_of, pos_of, models, model, gpu_count, levels, cell_model, failure, labels }
    }

    pub(crate) fn level(&self, level: Level) -> &LevelShape {
        &self.levels[level as usize]
    }
}

/// For each node of the record its domain on every level, numbered by first appearance. A finer
/// domain's key holds its parent's number, so that every domain lies within one parent: what an
/// irregular fabric spreads over two (an NVLink domain over two blocks) becomes two.
struct Paths {
    /// Site, pod, block, NVLink domain, node.
    of: Vec<[u32; 5]>,
    names: [Vec<String>; 5],
}

/// What makes a block: the set of leafs, or the rack where no leafs are known.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
enum BlockKey {
    Leafs(Vec<VertexId>),
    Rack(String),
}

impl BlockKey {
    fn spines(&self, fabric: &Fabric) -> Vec<VertexId> {
        match self {
            BlockKey::Leafs(leafs) => fabric.spines_of(leafs),
            BlockKey::Rack(_) => Vec::new(),
        }
    }

    fn name(&self, fabric: &Fabric, site: &str) -> String {
        match self {
            BlockKey::Leafs(leafs) => name_of(fabric, leafs, site),
            BlockKey::Rack(rack) if rack.is_empty() => site.to_owned(),
            BlockKey::Rack(rack) => rack.clone(),
        }
    }
}

impl Paths {
    fn walk(record: &FabricRecord, fabric: &Fabric) -> Paths {
        let mut sites = Interner::default();
        let mut pods = Interner::default();
        let mut blocks = Interner::default();
        let mut domains = Interner::default();
        let mut names: [Vec<String>; 5] = Default::default();
        let mut of = Vec::with_capacity(record.nodes.len());
        // Neighbours mostly share site, leafs and rack: then the block is the previous one.
        let mut last: Option<(&str, BlockKey, [u32; 3])> = None;
        for (at, node) in record.nodes.iter().enumerate() {
            let vertex = fabric.node(at);
            let leafs = fabric.leafs(vertex);
            let key = match leafs.is_empty() {
                true => BlockKey::Rack(node.rack.clone()),
                false => BlockKey::Leafs(leafs),
            };
            let [site, pod, block] = match &last {
                Some((site, block, path)) if *site == node.site && *block == key => *path,
                _ => {
                    let spines = key.spines(fabric);
                    let site = sites.id(node.site.as_str());
                    let pod = pods.id((site, spines.clone()));
                    let block = blocks.id((pod, key.clone()));
                    push_new(&mut names[0], site, || node.site.clone());
                    push_new(&mut names[1], pod, || name_of(fabric, &spines, &node.site));
                    push_new(&mut names[2], block, || key.name(fabric, &node.site));
                    [site, pod, block]
                }
            };
            last = Some((&node.site, key, [site, pod, block]));
            let domain = fabric.nvlink_domain(vertex).unwrap_or(vertex);
            let nvlink = domains.id((block, domain));
            push_new(&mut names[3], nvlink, || fabric.name(domain).to_owned());
            names[4].push(node.name.clone());
            of.push([site, pod, block, nvlink, at as u32]);
        }
        let mut paths = Paths { of, names };
        paths.tell_namesakes_apart();
        paths
    }

    /// Appends the parent's name where two domains of a level would bear the same.
    fn tell_namesakes_apart(&mut self) {
        for level in 1..4 {
            let mut parent = vec![0; self.names[level].len()];
            for path in &self.of {
                parent[path[level] as usize] = path[level - 1];
            }
            let mut seen: BTreeMap<&str, u32> = BTreeMap::new();
            for name in &self.names[level] {
                *seen.entry(name).or_default() += 1;
            }
            let named = |(at, name): (usize, &String)| match seen[name.as_str()] {
                1 => name.clone(),
                _ => format!("{name}/{}", self.names[level - 1][parent[at] as usize]),
            };
            self.names[level] = self.names[level].iter().enumerate().map(named).collect();
        }
    }
}

/// The switches' names in short form; the site's where there are none.
fn name_of(fabric: &Fabric, switches: &[VertexId], site: &str) -> String {
    if switches.is_empty() {
        return site.to_owned();
    }
    let names: Vec<String> = switches.iter().map(|id| fabric.name(*id).to_owned()).collect();
    compress(&names)
}

fn push_new(names: &mut Vec<String>, id: u32, name: impl FnOnce() -> String) {
    if id as usize == names.len() {
        names.push(name());
    }
}

/// Cuts the sorted nodes into contiguous domains, level by level, and gives each domain a cell for
/// every GPU model in it.
fn derive_levels(
    paths: &Paths,
    record_of: &[u32],
    model: &[ModelId],
    cell_model: &mut Vec<ModelId>,
) -> [LevelShape; 5] {
    let mut levels: [LevelShape; 5] = Default::default();
    for depth in 0..5 {
        let mut shape = LevelShape::default();
        let id_of = |at: u32| paths.of[at as usize][depth];
        for members in record_of.chunk_by(|a, b| id_of(*a) == id_of(*b)) {
            let start = shape.domain_of.len();
            let end = start + members.len();
            let ordinal = shape.domains.len() as u32;
            let first_cell = cell_model.len();
            for model in &model[start..end] {
                let known = cell_model[first_cell..].iter().position(|known| known == model);
                let cell = known.map_or(cell_model.len(), |place| first_cell + place);
                if cell == cell_model.len() {
                    cell_model.push(*model);
                }
                shape.domain_of.push(ordinal);
                shape.cell_of.push(cell as u32);
            }
            let coarser = depth.checked_sub(1).map(|above| &mut levels[above]);
            let parent = coarser.map_or(0, |above| adopt(above, start, ordinal));
            shape.domains.push(Domain {
                name: paths.names[depth][id_of(members[0]) as usize].clone(),
                nodes: start as u32..end as u32,
                parent,
                children: 0..0,
                cells: first_cell as u32..cell_model.len() as u32,
            });
        }
        levels[depth] = shape;
    }
    levels
}

/// Enters `ordinal` as the newest child of the domain that holds position `pos`; returns the parent.
fn adopt(above: &mut LevelShape, pos: usize, ordinal: u32) -> u32 {
    let parent = above.domain_of[pos];
    let children = &mut above.domains[parent as usize].children;
    if children.start == children.end {
        *children = ordinal..ordinal;
    }
    children.end = ordinal + 1;
    parent
}

/// Failure domains by kind: those written down, and rack and site. Racks of one name in several
/// sites are several: `site/rack`.
fn derive_failure(record: &FabricRecord, record_of: &[u32]) -> BTreeMap<String, FailureKind> {
    let one_site = record.nodes.windows(2).all(|pair| pair[0].site == pair[1].site);
    let mut kinds: BTreeMap<&str, (Interner<Scoped<'_>>, Vec<u32>)> = BTreeMap::new();
    for (pos, &at) in record_of.iter().enumerate() {
        let node = &record.nodes[at as usize];
        let rack_scope = if one_site { "" } else { &node.site };
        let rack = (!node.rack.is_empty()).then_some(("rack", rack_scope, node.rack.as_str()));
        let written =
            node.failure_domains.iter().map(|(kind, name)| (kind.as_str(), "", name.as_str()));
        for (kind, scope, name) in written.chain(rack).chain([("site", "", node.site.as_str())]) {
            let (names, of) = kinds.entry(kind).or_default();
            of.resize(pos, u32::MAX);
            of.push(names.id((scope, name)));
        }
    }
    let spelled = |(scope, name): Scoped<'_>| match scope {
        "" => name.to_owned(),
        _ => format!("{scope}/{name}"),
    };
    let mut failure = BTreeMap::new();
    for (kind, (names, mut of)) in kinds {
        of.resize(record_of.len(), u32::MAX);
        let names = names.in_order().into_iter().map(spelled).collect();
        failure.insert(kind.to_owned(), FailureKind { names, of });
    }
    failure
}

/// Which nodes have which label.
fn derive_labels(
    record: &FabricRecord,
    record_of: &[u32],
) -> BTreeMap<String, BTreeMap<String, Vec<u32>>> {
    let mut labels: BTreeMap<String, BTreeMap<String, Vec<u32>>> = BTreeMap::new();
    for (pos, &at) in (0u32..).zip(record_of) {
        for (key, value) in &record.nodes[at as usize].labels {
            let values = match labels.get_mut(key) {
                Some(values) => values,
                None => labels.entry(key.clone()).or_default(),
            };
            match values.get_mut(value) {
                Some(nodes) => nodes.push(pos),
                None => drop(values.insert(value.clone(), vec![pos])),
            }
        }
    }
    labels
}

/// A name, and the site it belongs to where that matters.
type Scoped<'a> = (&'a str, &'a str);

/// Numbers keys by first appearance. Neighbours mostly repeat a key, so the last one is kept.
struct Interner<K> {
    ids: BTreeMap<K, u32>,
    last: Option<(K, u32)>,
}

impl<K> Default for Interner<K> {
    fn default() -> Interner<K> {
        Interner { ids: BTreeMap::new(), last: None }
    }
}

impl<K: Ord + Clone> Interner<K> {
    fn id(&mut self, key: K) -> u32 {
        if let Some((last, id)) = &self.last
            && *last == key
        {
            return *id;
        }
        let next = self.ids.len() as u32;
        let id = *self.ids.entry(key.clone()).or_insert(next);
        self.last = Some((key, id));
        id
    }

    /// The keys, by number.
    fn in_order(self) -> Vec<K> {
        let mut pairs: Vec<(K, u32)> = self.ids.into_iter().collect();
        pairs.sort_by_key(|(_, id)| *id);
        pairs.into_iter().map(|(key, _)| key).collect()
    }
}

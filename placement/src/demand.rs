//! What a gang or an instance asks for, in the terms of the flat index. Small values that compare,
//! so that equal shapes are recognised: what is long (groups, label rules) is numbered by
//! [`Terms`], 0 where there is none. Never looks at what is free.

use std::{collections::BTreeMap, fmt};

use rowen_state::{Group, JobSpec, LabelTest, NodeFilter, Resources, Spread};
use rowen_topology::{FlatIndex, Level, ModelId, NodePos};

/// Which GPUs will do.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Model {
    Any,
    Only(ModelId),
    /// Asked for by a name that no node of the fabric has.
    Unknown,
}

/// What one worker or instance needs of its node.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Claim {
    pub(crate) gpus: u32,
    pub(crate) cpus: u64,
    pub(crate) memory_mib: u64,
    pub(crate) model: Model,
    /// Which of [`Terms`] says which nodes will do; 0: all.
    filter: u32,
    /// Nobody else on the node.
    pub(crate) exclusive: bool,
    /// Only nodes whose links are so far in order; `None`: all.
    pub(crate) way: Option<Way>,
}

/// How fast a node must reach the others of its domain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Way {
    /// Of which level.
    pub(crate) level: Level,
    /// What must be left of its ways there, in thousandths.
    pub(crate) least_milli: u16,
}

impl Way {
    /// What a gang that requires a level is given at least: one slow worker slows all.
    pub(crate) fn required(level: Level) -> Way {
        Way { level, least_milli: 900 }
    }

    /// Nothing is lost.
    pub(crate) fn whole(level: Level) -> Way {
        Way { level, least_milli: 1_000 }
    }
}

impl Claim {
    pub(crate) fn new(resources: &Resources, index: &FlatIndex) -> Self {
        let model = match &resources.gpu_model {
            None => Model::Any,
            Some(name) => index.model_id(name).map_or(Model::Unknown, Model::Only),
        };
        Claim {
            gpus: resources.gpus,
            cpus: resources.cpus.into(),
            memory_mib: resources.memory_mib,
            model,
            filter: 0,
            exclusive: false,
            way: None,
        }
    }

    /// Whether every node will do that has the room.
    pub(crate) fn admits_all(&self) -> bool {
        self.model == Model::Any && self.filter == 0 && self.way.is_none()
    }

    /// The same on nodes whose links are so far in order.
    pub(crate) fn by(&self, way: Way) -> Claim {
        Claim { way: Some(way), ..*self }
    }

    /// The same wherever links are faulty.
    pub(crate) fn any_way(&self) -> Claim {
        Claim { way: None, ..*self }
    }

    fn admits(&self, model: ModelId) -> bool {
        match self.model {
            Model::Any => true,
            Model::Only(wanted) => wanted == model,
            Model::Unknown => false,
        }
    }
}

/// What a gang asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Ask {
    pub(crate) claim: Claim,
    pub(crate) workers: u32,
    /// It may also be fewer, but no fewer than these.
    pub(crate) least: u32,
    /// All workers inside one domain of this level; a gang never spans sites.
    pub(crate) required: Level,
    pub(crate) preferred: Option<Level>,
    /// For a while only: what it prefers counts as required.
    pub(crate) waits: bool,
    /// Which of [`Terms`] says how workers stand to each other; 0: any way.
    form: u32,
}

impl Ask {
    /// Levels to try, tightest first: from the preferred one (a node, where none is) to the required.
    pub(crate) fn levels(&self) -> impl Iterator<Item = Level> + use<> {
        let (finest, coarsest) = (self.preferred.unwrap_or(Level::Node), self.required);
        Level::ALL.into_iter().rev().filter(move |level| *level <= finest && *level >= coarsest)
    }

    /// GPUs of the whole gang.
    pub(crate) fn gpus(&self) -> u64 {
        u64::from(self.workers) * u64::from(self.claim.gpus)
    }

    /// GPUs without which it does not start.
    pub(crate) fn least_gpus(&self) -> u64 {
        u64::from(self.least) * u64::from(self.claim.gpus)
    }

    /// Whether any workers will do that fit into one domain.
    pub(crate) fn is_formless(&self) -> bool {
        self.form == 0
    }

    /// The same inside one domain of a level, with another claim a worker.
    pub(crate) fn inside(self, required: Level, claim: Claim) -> Ask {
        Ask { claim, required, ..self }
    }

    /// The same with exactly so many workers.
    pub(crate) fn with(self, workers: u32) -> Ask {
        Ask { workers, least: workers, ..self }
    }
}

/// How the workers of a gang stand to each other.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Form {
    /// Outer to inner.
    pub(crate) groups: Vec<Group>,
    pub(crate) spread: Vec<Spread>,
    pub(crate) balanced: bool,
}

impl Form {
    /// The forms to try, strictest first: preferred groups are given up from the outside in, for
    /// the inner ones talk most.
    pub(crate) fn variants(&self) -> impl Iterator<Item = Form> + '_ {
        let preferred = self.groups.iter().filter(|group| group.preferred).count();
        (0..=preferred).map(|given_up| self.without(given_up))
    }

    /// The one that only keeps what must be.
    pub(crate) fn loosest(&self) -> Form {
        self.without(self.groups.len())
    }

    fn without(&self, mut given_up: usize) -> Form {
        let mut kept = self.clone();
        kept.groups.retain(|group| {
            let goes = group.preferred && given_up > 0;
            given_up -= usize::from(goes);
            !goes
        });
        kept
    }

    /// What the number of workers must be a multiple of.
    pub(crate) fn step(&self) -> u32 {
        self.groups.first().map_or(1, |group| group.workers)
    }
}

/// The long parts of what is asked in one cycle, numbered.
#[derive(Default)]
pub(crate) struct Terms {
    forms: BTreeMap<Form, u32>,
    form_at: Vec<Form>,
    filters: BTreeMap<NodeFilter, u32>,
    filter_at: Vec<Filter>,
}

/// Which nodes will do, worked out.
struct Filter {
    asked: NodeFilter,
    /// By position.
    admits: Vec<bool>,
}

impl Terms {
    /// What a job asks for. While it `waits` for its preferred level, that counts as required.
    pub(crate) fn ask(&mut self, spec: &JobSpec, waits: bool, index: &FlatIndex) -> Ask {
        let mut ask = Ask {
            claim: Claim::new(&spec.resources, index),
            workers: spec.workers,
            least: spec.workers,
            required: spec.required.unwrap_or(Level::Site),
            preferred: spec.preferred,
            waits,
            form: 0,
        };
        if spec.shape.is_plain() {
            return ask;
        }
        let shape = &spec.shape;
        if waits {
            ask.required = spec.preferred.unwrap_or(ask.required);
        }
        if shape.min_workers > 0 {
            ask.least = shape.min_workers;
        }
        let group = |group: &Group| Group { preferred: group.preferred && !waits, ..*group };
        ask.form = self.form(Form {
            groups: shape.groups.iter().map(group).collect(),
            spread: shape.spread.clone(),
            balanced: shape.balanced,
        });
        ask.claim.exclusive = shape.nodes.exclusive;
        ask.claim.filter = self.filter(&shape.nodes, index);
        ask
    }

    fn form(&mut self, form: Form) -> u32 {
        if form == Form::default() {
            return 0;
        }
        if let Some(id) = self.forms.get(&form) {
            return *id;
        }
        self.form_at.push(form.clone());
        let id = self.form_at.len() as u32;
        self.forms.insert(form, id);
        id
    }

    fn filter(&mut self, asked: &NodeFilter, index: &FlatIndex) -> u32 {
        if asked.gpu_models.is_empty() && asked.labels.is_empty() {
            return 0;
        }
        if let Some(id) = self.filters.get(asked) {
            return *id;
        }
        self.filter_at.push(Filter { asked: asked.clone(), admits: admitted(asked, index) });
        let id = self.filter_at.len() as u32;
        self.filters.insert(asked.clone(), id);
        id
    }

    pub(crate) fn form_of(&self, ask: &Ask) -> Form {
        match ask.form.checked_sub(1) {
            Some(at) => self.form_at[at as usize].clone(),
            None => Form::default(),
        }
    }

    fn filter_of(&self, claim: &Claim) -> Option<&Filter> {
        Some(&self.filter_at[claim.filter.checked_sub(1)? as usize])
    }

    /// Whether a node will do for a claim, whatever is free there.
    pub(crate) fn admits(&self, claim: &Claim, pos: NodePos, index: &FlatIndex) -> bool {
        claim.admits(index.model(pos))
            && self.filter_of(claim).is_none_or(|filter| filter.admits[pos.0 as usize])
    }

    /// `8 H100 GPUs`.
    pub(crate) fn claim_in_words(&self, claim: &Claim, index: &FlatIndex) -> String {
        let gpus = if claim.gpus == 1 { "GPU" } else { "GPUs" };
        let filter = self.filter_of(claim).map(|filter| &filter.asked);
        let models = match claim.model {
            Model::Only(model) => format!("{} ", index.model_name(model)),
            Model::Any | Model::Unknown => match filter {
                Some(asked) if !asked.gpu_models.is_empty() => {
                    format!("{} ", asked.gpu_models.join(" or "))
                }
                _ => String::new(),
            },
        };
        let rules = filter.map_or_else(String::new, rules_in_words);
        let alone = if claim.exclusive { " on nodes of its own" } else { "" };
        format!("{} {models}{gpus}{alone}{rules}", claim.gpus)
    }

    /// `12 × 8 H100 GPUs inside one pod`.
    pub(crate) fn ask_in_words(&self, ask: &Ask, index: &FlatIndex) -> String {
        let each = self.claim_in_words(&ask.claim, index);
        let count = match (ask.workers, ask.least) {
            (1, _) => each,
            (workers, least) if least < workers => format!("{least} to {workers} × {each}"),
            (workers, _) => format!("{workers} × {each}"),
        };
        let form = form_in_words(&self.form_of(ask));
        format!("{count} inside one {}{form}", LevelWord(ask.required))
    }
}

/// By position: whether the node's model and labels will do.
fn admitted(asked: &NodeFilter, index: &FlatIndex) -> Vec<bool> {
    let models = &asked.gpu_models;
    let wanted: Vec<bool> = (0..index.model_count())
        .map(|model| {
            models.is_empty() || models.iter().any(|m| m == index.model_name(ModelId(model)))
        })
        .collect();
    let nodes = (0..index.node_count()).map(|pos| wanted[usize::from(index.model(NodePos(pos)).0)]);
    let mut admits: Vec<bool> = nodes.collect();
    for rule in &asked.labels {
        let (values, inside): (&[String], bool) = match &rule.test {
            LabelTest::In(values) => (values, true),
            LabelTest::NotIn(values) => (values, false),
            LabelTest::Exists => (&[], true),
            LabelTest::Missing => (&[], false),
        };
        let mut named = vec![false; admits.len()];
        let labelled = index.labelled(&rule.key);
        for (_, nodes) in labelled
            .filter(|(value, _)| values.is_empty() || values.iter().any(|wanted| wanted == value))
        {
            nodes.iter().for_each(|pos| named[*pos as usize] = true);
        }
        admits.iter_mut().zip(named).for_each(|(admits, named)| *admits &= named == inside);
    }
    admits
}

/// ` with tier gold`.
fn rules_in_words(asked: &NodeFilter) -> String {
    let rule = |rule: &rowen_state::LabelRule| match &rule.test {
        LabelTest::In(values) => format!("with {} {}", rule.key, values.join(" or ")),
        LabelTest::NotIn(values) => format!("without {} {}", rule.key, values.join(" or ")),
        LabelTest::Exists => format!("with a label {}", rule.key),
        LabelTest::Missing => format!("without a label {}", rule.key),
    };
    let rules: Vec<String> = asked.labels.iter().map(rule).collect();
    if rules.is_empty() { String::new() } else { format!(" {}", rules.join(" and ")) }
}

/// `, in groups of 8 inside one block, at most 2 in one node`.
fn form_in_words(form: &Form) -> String {
    let mut words = String::new();
    for (at, group) in form.groups.iter().enumerate() {
        let of = if at == 0 { ", in groups of" } else { " of" };
        let may = if group.preferred { " preferably" } else { "" };
        words += &format!("{of} {}{may} inside one {}", group.workers, LevelWord(group.level));
    }
    for spread in &form.spread {
        words += &format!(", at most {} in one {}", spread.workers, LevelWord(spread.level));
    }
    words
}

/// A level in a sentence.
pub(crate) struct LevelWord(pub(crate) Level);

impl fmt::Display for LevelWord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self.0 {
            Level::Nvlink => "NVLink domain",
            level => level.as_str(),
        })
    }
}

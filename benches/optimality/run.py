"""Rowen's planner against the optimum, on random small fabrics.

Draws fabrics of at most 12 nodes with a queue of mixed gangs, has the real planner plan each
(plan_cases.rs), and solves the same case as a mixed-integer program with HiGHS. Two questions:

- gangs: of the gangs that the best plan places, how many does the planner place? The best plan
  honours the queue: it places the first gang if that can be done at all, then the second beside
  it, and so on; what could be placed if nobody minded the order is shown beside it.
- levels: how far apart are the gangs that it placed, against the least for the same gangs? A gang
  counts 1 inside one node (or what it prefers), and 1 more for each level that it spans above.

The solver itself is held against a plain search over all placements on the smallest cases.
Never decides what the planner should do; changes nothing. See run.sh.
"""

import argparse
import itertools
import json
import random
import subprocess
import sys

import highspy

LEVELS = ["site", "pod", "block", "nvlink", "node"]
NODE = LEVELS.index("node")
BAR = 0.98


def draw_fabric(rng, most):
    """Nodes in order, each with its domain on every level, and the inventory that says so."""
    size, model = rng.choice([4, 8]), rng.choice(["H100", "A100"])
    nodes, leafs, spines, groups = [], [], [], []
    wanted = rng.randint(2, most)
    for site in range(rng.choice([1, 1, 1, 2])):
        for pod in range(rng.choice([1, 2, 2])):
            spine = f"s{site}-spine{pod}"
            spines.append(spine)
            for block in range(rng.randint(1, 3)):
                leaf = f"s{site}-p{pod}-leaf{block}"
                domain_nodes = rng.choice([1, 1, 2, 3])
                kind = model if rng.random() < 0.85 else "L40S"
                members = min(rng.randint(1, 5), wanted - len(nodes))
                if members > 0:
                    leafs.append({"names": leaf, "spines": spine})
                for at in range(members):
                    name = f"n{len(nodes):02}"
                    nvlink = f"{leaf}-nv{at // domain_nodes}" if domain_nodes > 1 else None
                    path = [f"s{site}", spine, leaf, nvlink or name, name]
                    nodes.append({"name": name, "path": path, "gpus": size, "model": kind, "cpus": 8 * size})
                    group = {"names": name, "site": f"s{site}", "leafs": leaf, "cpus": 8 * size,
                             "memory_mib": 1 << 20, "gpu": {"model": kind, "count": size, "memory_mib": 80 << 10}}
                    groups.append(group | ({"nvlink_domain": nvlink} if nvlink else {}))
    used = {leaf["spines"] for leaf in leafs}
    inventory = {"leafs": leafs, "nodes": groups}
    # One host list, as the file wants it.
    inventory["spines"] = ",".join(spine for spine in spines if spine in used)
    return nodes, inventory


def draw_case(rng, most_nodes, most_jobs):
    nodes, inventory = draw_fabric(rng, most_nodes)
    taken = {}
    for node in nodes:
        if rng.random() < 0.4:
            gpus = rng.randint(1, node["gpus"])
            taken[node["name"]] = {"gpus": gpus, "cpus": rng.choice([0, 4, 8]) * gpus}
    size = nodes[0]["gpus"]
    jobs = []
    for _ in range(rng.randint(2, most_jobs)):
        gpus = rng.choice([count for count in (1, 2, 3, 4, 8) if count <= size])
        required = rng.choice([None, None, None, "pod", "block", "nvlink", "node"])
        finer = LEVELS[LEVELS.index(required or "site"):]
        preferred = rng.choice([None, None, None, *finer])
        workers = rng.choice([1, 1, 2, 2, 3, 4, 6, 8])
        if required == "node":
            workers = min(workers, 64 // gpus)
        claim = {"gpus": gpus, "cpus": rng.choice([0, 0, 8, 12]) * gpus}
        if rng.random() < 0.3:
            claim["model"] = rng.choice(nodes)["model"]
        jobs.append({"workers": workers, "claim": claim, "required": required, "preferred": preferred,
                     "priority": rng.choice([0, 0, 0, 10])})
    return {"nodes": nodes, "fabric": inventory, "taken": taken, "jobs": jobs}


class Case:
    """A case in the terms of the program."""

    def __init__(self, case):
        self.nodes, self.jobs = case["nodes"], case["jobs"]
        taken = case["taken"]
        of = lambda node, what: taken.get(node["name"], {}).get(what, 0)
        self.gpus = [node["gpus"] - of(node, "gpus") for node in self.nodes]
        self.cpus = [node["cpus"] - of(node, "cpus") for node in self.nodes]
        # Next first: by priority, then as they came.
        self.queue = sorted(range(len(self.jobs)), key=lambda at: -self.jobs[at]["priority"])
        self.weight = {at: 1 << (len(self.jobs) - place) for place, at in enumerate(self.queue)}
        domains = {}
        for at, node in enumerate(self.nodes):
            for level, name in enumerate(node["path"]):
                domains.setdefault((level, name), []).append(at)
        self.domains = [(level, members) for (level, _), members in domains.items()]

    def cap(self, job, at):
        """Workers of a job on a node that is otherwise as it is."""
        claim, node = self.jobs[job]["claim"], self.nodes[at]
        if claim.get("model") not in (None, node["model"]):
            return 0
        by_cpus = self.cpus[at] // claim["cpus"] if claim["cpus"] else 64
        return max(0, min(self.gpus[at] // claim["gpus"], by_cpus, self.jobs[job]["workers"]))

    def required(self, job):
        return LEVELS.index(self.jobs[job]["required"] or "site")

    def cost(self, job, level):
        return 1 + max(0, LEVELS.index(self.jobs[job]["preferred"] or "node") - level)

    def span(self, members):
        """The finest level on which all of these nodes share a domain."""
        shared = [level for level in range(5) if len({self.nodes[at]["path"][level] for at in members}) == 1]
        return max(shared)

    def broken(self, job, on):
        """What is wrong with a placement by itself, if anything."""
        if len(on) != self.jobs[job]["workers"]:
            return "another number of workers"
        if len({self.nodes[at]["path"][self.required(job)] for at in on}) > 1:
            return "it leaves the level it requires"
        return None


def solve(case, objective, fixed=None):
    """`objective` is 'queue', 'count' or 'span'; `fixed` is the set of gangs that are placed."""
    h = highspy.Highs()
    h.silent()
    placed, workers, inside = {}, {}, {}
    for job in range(len(case.jobs)):
        placed[job] = h.addBinary()
        if fixed is not None:
            h.addConstr(placed[job] == (1 if job in fixed else 0))
        inside[job] = [(level, members, h.addBinary())
                       for level, members in case.domains if level >= case.required(job)]
        h.addConstr(sum(z for _, _, z in inside[job]) == placed[job])
        for at in range(len(case.nodes)):
            cap = case.cap(job, at)
            workers[job, at] = h.addVariable(0, cap, type=highspy.HighsVarType.kInteger)
            h.addConstr(workers[job, at] <= cap * sum(z for _, members, z in inside[job] if at in members))
        total = sum(workers[job, at] for at in range(len(case.nodes)))
        h.addConstr(total == case.jobs[job]["workers"] * placed[job])
    for at in range(len(case.nodes)):
        for what, have in (("gpus", case.gpus[at]), ("cpus", case.cpus[at])):
            claims = [(job, claim["claim"][what]) for job, claim in enumerate(case.jobs) if claim["claim"][what]]
            if claims:
                h.addConstr(sum(claim * workers[job, at] for job, claim in claims) <= max(0, have))
    if objective == "span":
        h.minimize(sum(case.cost(job, level) * z for job in inside for level, _, z in inside[job]))
    else:
        weight = (lambda job: case.weight[job]) if objective == "queue" else (lambda job: 1)
        h.maximize(sum(weight(job) * placed[job] for job in placed))
    status = h.getModelStatus()
    assert status == highspy.HighsModelStatus.kOptimal, status
    chosen = {job for job in placed if h.val(placed[job]) > 0.5}
    return chosen, h.getObjectiveValue()


def search(case):
    """All placements, plainly: the best set by the queue, and the least span of that set."""
    best = (-1, 0)

    def ways(job):
        for level, members in case.domains:
            if level < case.required(job):
                continue
            for split in itertools.product(*(range(case.cap(job, at) + 1) for at in members)):
                if sum(split) == case.jobs[job]["workers"]:
                    yield case.cost(job, level), list(zip(members, split))

    def go(place, gpus, cpus, worth, span):
        nonlocal best
        if place == len(case.queue):
            best = max(best, (worth, -span))
            return
        job = case.queue[place]
        claim = case.jobs[job]["claim"]
        for cost, split in ways(job):
            left, host = list(gpus), list(cpus)
            for at, count in split:
                left[at] -= count * claim["gpus"]
                host[at] -= count * claim["cpus"]
            if all(left[at] >= 0 and (host[at] >= 0 or not claim["cpus"]) for at, _ in split):
                go(place + 1, left, host, worth + case.weight[job], span + cost)
        go(place + 1, gpus, cpus, worth, span)

    go(0, case.gpus, case.cpus, 0, 0)
    return best[0], -best[1]


def check_solver(seed, count):
    """The program against the plain search; returns how many cases agreed."""
    rng = random.Random(seed)
    for number in range(count):
        case = Case(draw_case(rng, 4, 3))
        chosen, worth = solve(case, "queue")
        _, span = solve(case, "span", chosen)
        plain_worth, plain_span = search(case)
        # Equal worth is the equal set: each gang has a bit of its own.
        assert round(worth) == plain_worth, f"case {number}: {worth} against {plain_worth}"
        assert round(span) == plain_span, f"case {number}: span {span} against {plain_span}"
    return count


def judge(raw, answer):
    """One case: what the planner did beside the best."""
    case = Case(raw)
    index = {node["name"]: at for at, node in enumerate(case.nodes)}
    on = {job: [index[name] for name in one["nodes"]] for job, one in enumerate(answer) if one["nodes"]}
    gpus, cpus = list(case.gpus), list(case.cpus)
    for job, members in on.items():
        assert case.broken(job, members) is None, case.broken(job, members)
        for at in members:
            gpus[at] -= case.jobs[job]["claim"]["gpus"]
            cpus[at] -= case.jobs[job]["claim"]["cpus"]
    assert min(gpus) >= 0, "a GPU was given twice"
    best, _ = solve(case, "queue")
    most, _ = solve(case, "count")
    _, least = solve(case, "span", set(on))
    spanned = sum(case.cost(job, case.span(members)) for job, members in on.items())
    wanted = lambda jobs: sum(case.jobs[job]["workers"] * case.jobs[job]["claim"]["gpus"] for job in jobs)
    return {"placed": len(on), "best": len(best), "most": len(most), "spanned": spanned,
            "least": round(least), "gpus": wanted(on), "gpus_best": wanted(best),
            "by_queue": sum(case.weight[job] for job in on) / sum(case.weight[job] for job in best) if best else 1,
            "missed": sorted(best - set(on)), "instead": sorted(set(on) - best)}


def mean(values):
    values = list(values)
    return sum(values) / max(1, len(values))


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--engine", required=True, help="the built example plan-cases")
    parser.add_argument("--cases", type=int, default=300)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--show", type=int, help="print this case whole and stop")
    parser.add_argument("--json", action="store_true", help="one object on the last line, nothing else")
    parser.add_argument("--enforce", action="store_true", help="exit 1 when a bar is missed")
    args = parser.parse_args()

    agreed = check_solver(args.seed, 60)
    rng = random.Random(args.seed)
    raw = [draw_case(rng, 12, 8) for _ in range(args.cases)]
    keep = ("fabric", "taken", "jobs")
    text = json.dumps([{key: case[key] for key in keep} for case in raw])
    engine = subprocess.run([args.engine], input=text, stdout=subprocess.PIPE, text=True, check=True)
    answers = json.loads(engine.stdout)
    if args.show is not None:
        print(json.dumps(raw[args.show] | {"answers": answers[args.show]}, indent=1))
        print(judge(raw[args.show], answers[args.show]))
        return 0
    seen = [judge(case, answer) for case, answer in zip(raw, answers)]
    # More gangs than the best plan by the queue is no merit: somebody ahead was passed over.
    gangs = [min(1, one["placed"] / one["best"]) if one["best"] else 1 for one in seen]
    levels = [one["least"] / one["spanned"] if one["spanned"] else 1 for one in seen]
    figures = []

    def figure(name, case, value, bar=None):
        line = {"name": name, "case": case, "value": round(value, 4), "unit": "of the optimum"}
        if bar:
            line |= {"bar": bar, "ok": value >= bar}
        figures.append(line)

    of = f"cases={args.cases} nodes<=12"
    figure("gangs_placed", f"{of} mean", mean(gangs), BAR)
    figure("gangs_placed", f"{of} worst, case {gangs.index(min(gangs))}", min(gangs))
    figure("gangs_in_queue_order", f"{of} mean", mean(one["by_queue"] for one in seen), BAR)
    figure("gpus_placed", f"{of} all", sum(one["gpus"] for one in seen) / sum(one["gpus_best"] for one in seen))
    figure("gangs_placed_order_ignored", f"{of} mean", mean(one["placed"] / one["most"] if one["most"] else 1 for one in seen))
    figure("levels_spanned", f"{of} mean", mean(levels), BAR)
    figure("levels_spanned", f"{of} worst, case {levels.index(min(levels))}", min(levels))
    ok = all(line.get("ok", True) for line in figures)
    report = {"command": "benches/optimality/run.sh", "seed": args.seed, "figures": figures, "ok": ok}
    if not args.json:
        print(f"the program agrees with the plain search on {agreed} of {agreed} smallest cases")
        print(f"{sum(one['placed'] for one in seen)} gangs placed, {sum(one['best'] for one in seen)} by the best plan "
              f"in queue order, {sum(one['most'] for one in seen)} in any order; "
              f"{sum(one['spanned'] for one in seen)} levels spanned, {sum(one['least'] for one in seen)} at least")
        for line in figures:
            bar = f"  bar {line['bar']}: {'ok' if line['ok'] else 'MISSED'}" if "bar" in line else ""
            print(f"{line['name']:<28} {line['case']:<40} {line['value']:.4f} {line['unit']}{bar}")
        for number, one in enumerate(seen):
            if one["missed"] or one["spanned"] > one["least"]:
                print(f"case {number}: {one}", file=sys.stderr)
    else:
        print(json.dumps(report))
    return 1 if args.enforce and not ok else 0


if __name__ == "__main__":
    sys.exit(main())

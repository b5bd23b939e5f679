"""The engine: firing, declining, fixed points, regions, value maps."""

from __future__ import annotations

import pytest
from graphs import Model, b, d, s

from archc.compiler.ir.graph import Program
from archc.compiler.rewrite import (
    Declined,
    Edit,
    Fuse,
    Moved,
    Pass,
    Rewrite,
    Rule,
    Session,
    ValueMap,
    close,
    extract,
    run_pass,
)
from archc.dsl.diagnostics import InternalError


def chain() -> tuple[Program, dict[str, int]]:
    """y = exp(tanh(x)) + x, and the ids by op."""
    m = Model()
    x = m.input("x", b, s, d)
    y = x.op("tanh").op("exp") + x
    program = m.program(y=y)
    return program, {n.op: n.id for n in program.main.nodes}


def edit_of(program: Program) -> Edit:
    return Edit(program, program.main, Session())


def as_pass(*rules: Rule) -> Pass:
    return Pass("test", "x = x", rules)


def test_a_value_replaces_its_node_and_the_dead_are_swept() -> None:
    program, ids = chain()
    rule = Rule("skip-exp", lambda edit, node: node.inputs[0], ("exp",))
    session = Session()
    after, moved = run_pass(as_pass(rule), program, session)
    assert [n.op for n in after.main.nodes] == ["input", "tanh", "add"]
    assert moved == {("main", ids["exp"]): Moved(ids["tanh"])}
    (site,) = session.sites
    assert (site.rule, site.fired, site.function) == ("skip-exp", True, "main")


def test_new_nodes_unite_the_origins_of_what_they_replace() -> None:
    program, ids = chain()

    def both(edit: Edit, node):
        if node.op != "exp":
            return None
        new = edit.add("sigmoid", edit[node.inputs[0]].inputs)
        return Rewrite({node.id: new, node.inputs[0]: new})

    after, _ = run_pass(as_pass(Rule("both", both)), program, Session())
    (new,) = [n for n in after.main.nodes if n.op == "sigmoid"]
    assert set(new.origins) == {o for op in ("exp", "tanh") for o in program.main[ids[op]].origins}


def test_a_replacement_is_laid_out_as_the_old_value() -> None:
    m = Model()
    x, z = m.input("x", b, s, d), m.input("z", d, s, b)
    program = m.program(y=x.op("tanh"), z=z.op("tanh"))
    edit = edit_of(program)
    first, second = (i for _, i in program.main.outputs)
    edit.replace(first, second)
    done = edit.finish()
    transposed = done[dict(done.outputs)["y"]]
    assert (transposed.op, transposed.axes) == ("transpose", (b, s, d))


def test_a_replacement_of_another_type_is_our_bug() -> None:
    program, ids = chain()
    edit = edit_of(program)
    other = edit.add("index", (), {"axis": s})
    with pytest.raises(InternalError, match="replaces float"):
        edit.replace(ids["exp"], other)


def test_declines_are_reported_once_with_their_reason() -> None:
    program, _ = chain()
    rules = (
        Rule("never", lambda edit, node: Declined("not today"), ("tanh",)),
        Rule("skip-exp", lambda edit, node: node.inputs[0], ("exp",)),
    )
    session = Session()
    run_pass(as_pass(*rules), program, session)
    declined = [x for x in session.sites if not x.fired]
    assert [(x.rule, x.reason) for x in declined] == [("never", "not today")]


def test_rules_that_alternate_are_named() -> None:
    program, _ = chain()
    rules = (
        Rule("there", lambda edit, node: edit.add("cos", node.inputs), ("exp",)),
        Rule("back", lambda edit, node: edit.add("exp", node.inputs), ("cos",)),
    )
    with pytest.raises(InternalError, match="rules that alternate: back, there"):
        run_pass(as_pass(*rules), program, Session())


def test_the_limit_stops_after_n_firings() -> None:
    program, _ = chain()
    rule = Rule("skip", lambda edit, node: node.inputs[0], ("exp", "tanh"))
    for limit, left in ((0, 4), (1, 3), (2, 2)):
        after, _ = run_pass(as_pass(rule), program, Session(limit=limit))
        assert len(after.main.nodes) == left


def test_nodes_that_a_declining_rule_added_disappear() -> None:
    program, _ = chain()

    def undecided(edit: Edit, node):
        edit.add("cos", node.inputs)

    after, _ = run_pass(as_pass(Rule("undecided", undecided, ("exp",))), program, Session())
    assert after == program


def test_a_region_becomes_a_body_with_its_leaves_as_inputs() -> None:
    program, ids = chain()
    edit = edit_of(program)
    region = close(edit, [ids["exp"], ids["add"]])
    assert (region.leaves, region.outputs) == ((ids["tanh"], ids["input"]), (ids["add"],))
    body = extract(edit, region, "body.1")
    assert [n.op for n in body.nodes] == ["input", "input", "exp", "add"]


def test_free_sources_are_copied_into_a_body() -> None:
    m = Model()
    x = m.input("x", b, s, d)
    y = x.cast("f32") * 2.0
    program = m.program(y=y, z=x.cast("f32").op("exp"))
    edit = edit_of(program)
    region = close(edit, [y.id], [y.id])
    assert sorted(edit[i].op for i in region.nodes) == ["cast", "const", "mul"]
    assert region.leaves == (x.id,)


def test_a_fused_region_of_two_results() -> None:
    m = Model()
    x = m.input("x", b, s, d)
    first = x.op("tanh")
    second = first.op("exp")
    program = m.program(y=second, z=first)

    def fuse(edit: Edit, node):
        return Fuse("pointwise", close(edit, [first.id, second.id]))

    after, moved = run_pass(as_pass(Rule("fuse", fuse, ("exp",))), program, Session())
    assert [n.op for n in after.main.nodes] == ["input", "pointwise", "result", "result"]
    assert after.body(after.main.nodes[1]).name == "pointwise.1"
    assert not moved["main", first.id].inside


def test_values_are_followed_through_passes() -> None:
    program, ids = chain()
    session = Session()
    skip = as_pass(Rule("skip-exp", lambda edit, node: node.inputs[0], ("exp",)))
    middle, first = run_pass(skip, program, session)

    def fuse(edit: Edit, node):
        return Fuse("pointwise", close(edit, [ids["tanh"], ids["add"]]))

    after, second = run_pass(as_pass(Rule("fuse", fuse, ("add",))), middle, session)
    values = ValueMap(program, program).then(middle, first).then(after, second)
    fused = next(n.id for n in after.main.nodes if n.op == "pointwise")
    assert values.find("main", ids["add"]) == Moved(fused)
    assert values.find("main", ids["exp"]) == Moved(fused, inside=True)
    assert values.find("main", ids["input"]) == Moved(ids["input"])
    assert values.pairs()["main", ids["add"]] == ("main", fused)


def test_passes_are_deterministic() -> None:
    rule = Rule("swap", lambda edit, node: edit.add("sigmoid", node.inputs), ("tanh", "exp"))
    results = [run_pass(as_pass(rule), chain()[0], Session())[0] for _ in range(2)]
    assert results[0] == results[1]

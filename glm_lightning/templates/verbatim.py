"""Whether a chat template puts contents out as they are, whatever they hold: read off its syntax tree."""

from __future__ import annotations

from collections.abc import Iterator

import jinja2
from jinja2 import nodes

_HARMLESS = (nodes.For, nodes.If, nodes.Output, nodes.TemplateData, nodes.Template, nodes.Assign, nodes.NSRef)
_KEYS = ("role", "content", "name", "tool_calls", "reasoning_content")
_INDIRECT = ("previtem", "nextitem", "changed", "cycle")
"""Ways from a loop to messages that this does not follow."""


def copies_contents(source: str) -> bool:
    """Whether every content comes out unchanged and nothing else depends on it; False where that is not plain.

    Plain is: loops over ``messages``, conditions and output of roles, and contents that are only added to other texts
    and put out. Then a rendering with placeholders says all about the rendering of any texts.
    """
    try:
        tree = jinja2.Environment(extensions=["jinja2.ext.loopcontrols"]).parse(source)
    except jinja2.TemplateSyntaxError:
        return False
    parents = {id(child): node for node in _walk(tree) for child in node.iter_child_nodes()}
    lists = {"messages"}
    loops = [loop for loop in tree.find_all(nodes.For) if _is_list(loop.iter, lists)]
    single = {loop.target.name for loop in loops if isinstance(loop.target, nodes.Name)}
    return all(_is_plain(node, parents, lists, single) for node in _walk(tree))


def _walk(node: nodes.Node) -> Iterator[nodes.Node]:
    yield node
    for child in node.iter_child_nodes():
        yield from _walk(child)


def _is_plain(node: nodes.Node, parents: dict[int, nodes.Node], lists: set[str], single: set[str]) -> bool:
    parent = parents.get(id(node))
    if isinstance(node, nodes.Stmt):
        return isinstance(node, _HARMLESS)
    if isinstance(node, nodes.Name) and node.name == "self":
        return False
    if isinstance(node, nodes.Name) and node.ctx == "load" and node.name in lists:
        looped = isinstance(parent, nodes.For) and parent.iter is node and isinstance(parent.target, nodes.Name)
        counted = isinstance(parent, nodes.Filter) and parent.name == "length"
        return looped or counted or (isinstance(parent, nodes.Getitem) and isinstance(parent.arg, nodes.Const))
    if isinstance(node, nodes.Name) and node.name in single:
        return node.ctx == "store" or _key(parent) is not None
    if isinstance(node, nodes.Getitem) and _is_list(node.node, lists):
        return _key(parent) is not None
    if isinstance(node, nodes.Getattr) and node.attr in _INDIRECT:
        return False
    return _key(node) != "content" or _is_put_out(node, parents)


def _is_put_out(node: nodes.Node, parents: dict[int, nodes.Node]) -> bool:
    above = parents[id(node)]
    while isinstance(above, nodes.Add | nodes.Concat):
        above = parents[id(above)]
    return isinstance(above, nodes.Output)


def _is_list(node: nodes.Node, lists: set[str]) -> bool:
    return isinstance(node, nodes.Name) and node.name in lists


def _key(node: nodes.Node | None) -> str | None:
    """The key by which a node takes something out of a turn, if it says it outright and it is one of a turn's."""
    key = None
    if isinstance(node, nodes.Getattr):
        key = node.attr
    elif isinstance(node, nodes.Getitem) and isinstance(node.arg, nodes.Const):
        key = node.arg.value
    return key if key in _KEYS else None

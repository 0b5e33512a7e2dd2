"""Fills Jinja templates of HTML, Markdown and programs. Each lies beside its module."""

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trainer.drawing.text import markdown, markdown_table, plain, shown, shown_number

if TYPE_CHECKING:
    from jinja2 import Environment

SHARED = Path(__file__).parent / "templates"  # the frame of all pages, and their style


def render(template: Path, **values: object) -> str:
    """The template's text, filled with ``values``.

    In an HTML template each value is put on one line and escaped, unless it is Markup of this
    project. Raises jinja2.UndefinedError for a name that has no value.
    """
    return _environment(template.parent).get_template(template.name).render(values)


def compile_templates(folder: Path) -> None:
    """Compile the folder's templates and those of all pages, which ``render`` else does later."""
    environment = _environment(folder)
    for name in environment.list_templates(["j2"]):
        environment.get_template(name)


@cache
def _environment(folder: Path) -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined, pass_eval_context
    from jinja2.nodes import EvalContext

    @pass_eval_context
    def one_line(context: EvalContext, value: Any) -> Any:
        is_raw = context.autoescape and isinstance(value, str) and not hasattr(value, "__html__")
        return plain(value) if is_raw else value

    environment = Environment(
        loader=FileSystemLoader([folder, SHARED]),
        autoescape=lambda name: name is not None and name.endswith(".html.j2"),
        finalize=one_line,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        auto_reload=False,
    )
    filters = {"markdown": markdown, "plain": plain, "repr": repr, "shown": shown}
    environment.filters.update(filters, number=shown_number)
    environment.globals["markdown_table"] = markdown_table
    return environment

"""MkDocs hooks for this repository's Markdown; named in ``mkdocs.yml``."""


def on_page_content(html: str, **_: object) -> str:
    """GitHub wants a pipe in the code of a table escaped; Python-Markdown would show the backslash."""
    return html.replace(r"&lt;\|endoftext\|&gt;", "&lt;|endoftext|&gt;")

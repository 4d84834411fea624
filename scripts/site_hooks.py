"""MkDocs hooks for this repository's Markdown; named in ``mkdocs.yml``."""


def on_page_content(html: str, **_: object) -> str:
    """Remove backslashes before pipes in the code of tables: GitHub requires them, but Python-Markdown shows them."""
    return html.replace(r"&lt;\|endoftext\|&gt;", "&lt;|endoftext|&gt;")

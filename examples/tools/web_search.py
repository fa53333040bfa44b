"""Search in pages of your own, without a browser: an index of SQLite, ranked by BM25.

agentrl train examples/tools/web_search.py --env.settings.pages pages.jsonl --data questions.jsonl
"""

import functools
import sqlite3
import tempfile

from agentrl import Env, tool
from agentrl_envs import load_rows

PAGES = (
    {"title": "Lighthouse of Veld", "text": "It was built by Ada Holm and first lit in 1887."},
    {"title": "Ada Holm", "text": "Ada Holm was an engineer, born in Tarn, a town on the river Sile."},
    {"title": "River Sile", "text": "The Sile is a river of 214 km. It rises in the hills of Omer."},
)
QUESTION = "Where the builder of Veld's lighthouse was born there is a river. How many km is it long?"
FIND = "select title, snippet(pages, 1, '', '', '...', 24) from pages(?) order by rank limit ?"


@functools.cache
def index_of(pages):
    """The file of an index, made once for all episodes; it goes when the program ends."""
    file = tempfile.NamedTemporaryFile(suffix=".sqlite")  # noqa: SIM115 - open as long as the index is used
    with sqlite3.connect(file.name) as index:
        index.execute("create virtual table pages using fts5(title, text, tokenize = 'porter unicode61')")
        rows = load_rows(pages) if pages else PAGES
        index.executemany("insert into pages values (:title, :text)", rows)
    index.close()
    return file


class WebSearch(Env):
    """Answer a question with what stands in the pages."""

    pages: str = ""
    required_fields = ("question", "answer")
    example_rows = ({"question": QUESTION, "answer": "214"},)

    def prompt(self, row):
        self.index = sqlite3.connect(f"file:{index_of(self.pages).name}?mode=ro", uri=True)
        return f"{row['question']}\nSearch the pages, then put the answer in \\boxed{{}}."

    @tool
    def search(self, words: str, count: int = 3) -> list:
        "Titles of the pages that fit best, each with the place that fits."
        terms = " OR ".join('"' + word.replace('"', "") + '"' for word in words.split())
        return self.index.execute(FIND, (terms or '""', min(max(count, 1), 10))).fetchall()

    @tool
    def read(self, title: str) -> str:
        "The text of a page."
        found = self.index.execute("select text from pages where title = ?", (title,)).fetchone()
        return found[0] if found else f"no page {title!r}; search gives titles"

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])

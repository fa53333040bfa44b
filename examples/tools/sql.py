"""Questions about a database, asked in SQL: reading only, with limits on rows and work.

A row has `question`, `answer`, and `database` (an SQLite file) or `script` (SQL that makes one).

    agentrl train examples/tools/sql.py --data questions.jsonl
"""

import sqlite3

from agentrl import Env, ToolError, tool

SHOP = """
create table customers (id integer primary key, name text, town text);
create table orders (id integer primary key, customer integer references customers, cents integer);
insert into customers values (1, 'Ines', 'Porto'), (2, 'Bo', 'Lund'), (3, 'Tove', 'Lund');
insert into orders values (1, 1, 1250), (2, 2, 300), (3, 3, 4100), (4, 3, 99), (5, 1, 75);
"""
QUESTION = "How many cents were spent by customers from Lund?"
READING = {sqlite3.SQLITE_SELECT, sqlite3.SQLITE_READ, sqlite3.SQLITE_FUNCTION, sqlite3.SQLITE_RECURSIVE}


def allowed(action, first, second, database, trigger):
    """Reading alone: an attached file could be written, and an extension could be anything."""
    reads = action in READING and second != "load_extension"
    return sqlite3.SQLITE_OK if reads else sqlite3.SQLITE_DENY


class Sql(Env):
    """Answer a question about a database."""

    most_rows: int = 30
    million_steps: int = 20
    required_fields = ("question", "answer")
    example_rows = ({"question": QUESTION, "answer": "4499", "script": SHOP},)

    def prompt(self, row):
        file = row.get("database")
        self.database = sqlite3.connect(f"file:{file}?mode=ro" if file else ":memory:", uri=True)
        self.database.executescript("" if file else row["script"])
        tables = self.database.execute("select sql from sqlite_schema where sql is not null").fetchall()
        self.database.set_authorizer(allowed)
        self.database.set_progress_handler(lambda: True, self.million_steps * 1_000_000)
        self.database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)
        schema = "\n".join(text for (text,) in tables)
        return f"{schema}\n\n{row['question']}\nAsk the database, then put the answer in \\boxed{{}}."

    @tool
    def query(self, sql: str) -> str:
        "Ask the database; one SELECT."
        try:
            cursor = self.database.execute(sql)
            found = cursor.fetchmany(self.most_rows + 1)
        except (sqlite3.Error, sqlite3.Warning) as error:
            raise ToolError(str(error).replace("interrupted", "it takes too long")) from error
        lines = [[column[0] for column in cursor.description or ()], *found[: self.most_rows]]
        more = ["... (more rows)"] if len(found) > self.most_rows else []
        return "\n".join([" | ".join(map(str, line)) for line in lines] + more)

    def reward(self, row, answer):
        return self.grade(answer, row["answer"])

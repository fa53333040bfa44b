"""A graph of LangGraph as an agent under training: it knows nothing of agentrl.

agentrl train --env.name "program:python examples/agents/langgraph_agent.py" --data rows.jsonl --model ...
"""

import contextlib
import io
import sys

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI
from langgraph.errors import GraphRecursionError
from langgraph.graph import START, MessagesState, StateGraph
from langgraph.prebuilt import ToolNode, tools_condition


@tool
def python(code: str) -> str:
    """Run Python and return what it prints."""
    shown = io.StringIO()
    try:
        with contextlib.redirect_stdout(shown):
            exec(code, {})
    except BaseException as error:
        return f"{type(error).__name__}: {error}"
    return shown.getvalue().strip()


model = ChatOpenAI(model="policy").bind_tools([python])
graph = StateGraph(MessagesState)
graph.add_node("model", lambda state: {"messages": [model.invoke(state["messages"])]})
graph.add_node("tools", ToolNode([python]))
graph.add_edge(START, "model")
graph.add_conditional_edges("model", tools_condition)
graph.add_edge("tools", "model")
try:
    ended = graph.compile().invoke({"messages": [("user", sys.stdin.read())]}, {"recursion_limit": 10})
    print(ended["messages"][-1].text)
except GraphRecursionError:
    print("no answer")

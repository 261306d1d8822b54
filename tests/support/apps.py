"""A small shop, half ported: every kind of pair that there is."""

from fastapi import APIRouter, FastAPI
from flask import Blueprint, Flask, Response, g, jsonify, request


def make_legacy() -> Flask:
    app = Flask("shop", static_folder=None)
    items = Blueprint("items", __name__, url_prefix="/api/items")

    @app.before_request
    def note_the_client() -> None:
        g.client = request.remote_addr

    @items.get("/")
    def list_items() -> Response:
        return jsonify(by="legacy", items=[1, 2])

    @items.route("/<int:item_id>", methods=["GET", "PUT"])
    def item(item_id: int) -> Response:  # the port answers GET only
        return jsonify(by="legacy", item=item_id)

    @items.delete("/<int:item_id>")
    def remove_item(item_id: int) -> Response:  # nothing of it is ported
        return jsonify(by="legacy", removed=item_id)

    @app.get("/api/search/<query>")
    def search(query: str) -> Response:  # its twin has another name, but the same path
        return jsonify(by="legacy", query=query)

    @app.get("/health")
    def health() -> Response:
        return jsonify(by="legacy")

    app.register_blueprint(items)
    return app


def make_port() -> FastAPI:
    app = FastAPI(docs_url=None, redoc_url=None)
    items = APIRouter(prefix="/api/items")

    @items.get("/", name="items.list_items")
    async def list_items() -> dict[str, object]:
        return {"by": "fastapi", "items": [1, 2]}

    @items.get("/{item_id}", name="items.item")
    async def item(item_id: int) -> dict[str, object]:
        return {"by": "fastapi", "item": item_id}

    @app.get("/api/search/{words}")
    async def find(words: str) -> dict[str, object]:
        return {"by": "fastapi", "query": words}

    @app.get("/health", name="health")
    async def health() -> dict[str, object]:
        return {"by": "fastapi"}

    @app.get("/api/suggestions", name="suggestions")  # born new
    async def suggestions() -> list[str]:
        return ["fastapi"]

    app.include_router(items)
    return app

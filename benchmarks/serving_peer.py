"""sentence-transformers behind FastAPI, as it is ordinarily written: one `encode` a request.

uvicorn benchmarks.serving_peer:app
"""

from fastapi import FastAPI
from pydantic import BaseModel
from sentence_transformers import SentenceTransformer

from recipes.tuning import minilm

app = FastAPI()
model = SentenceTransformer(str(minilm()), device="cpu")


class Text(BaseModel):
    """The body of a request."""

    text: str


@app.get("/health/ready")
@app.get("/health/live")
async def health() -> dict[str, str]:
    """The process answers."""
    return {"status": "ok"}


@app.post("/embed")
def embed(body: Text) -> dict[str, list[float]]:
    """In a worker thread, as FastAPI runs every plain function."""
    return {"embedding": model.encode(body.text, normalize_embeddings=True).tolist()}


@app.post("/embed-in-loop")
async def embed_in_loop(body: Text) -> dict[str, list[float]]:
    """In the event loop: one text after another, and nothing else meanwhile."""
    return {"embedding": model.encode(body.text, normalize_embeddings=True).tolist()}

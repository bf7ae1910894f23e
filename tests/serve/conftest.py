import pytest

from harness import SMOLLM2, Server, trio


@pytest.fixture(scope="session")
def server():
    """The float32 trio, with alpha 1."""
    with Server() as server:
        yield server


@pytest.fixture(scope="session")
def client(server):
    return server.client()


@pytest.fixture(scope="session")
def chat_server():
    """SmolLM2-135M-Instruct in all three places: what it says changes only where the tuned proxy reads another prompt."""
    models = trio(SMOLLM2, SMOLLM2, SMOLLM2)
    with Server("--ctx", "512", models=models) as server:
        yield server


@pytest.fixture(scope="session")
def chat_client(chat_server):
    return chat_server.client()


@pytest.fixture(autouse=True)
def _is_quiet(request):
    """A test leaves a shared server alive and idle."""
    yield
    for name in ("server", "chat_server"):
        if name in request.fixturenames:
            server = request.getfixturevalue(name)
            assert server.process.poll() is None, server.output()
            server.settle()
            assert "panicked" not in server.output()

"""The pinned packages that the models learn from, and how to fetch them.

A released file on PyPI never changes, so name and version fix the data. Each package serves
one role:

    docs        .rst, .md and .txt files of an sdist   → prose
    docstrings  the docstrings of a wheel's modules    → prose
    api         descriptions in JSON service models    → prose
    code        .py files of a wheel                   → code
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

from tqdm import tqdm

CACHE = Path(os.environ.get("PROXYTUNE_CACHE", Path.home() / ".cache" / "proxytune-models"))

# "name version licence", one package a line.
PINS = {
    "docs": """
        alembic 1.20.1 MIT
        celery 5.7.0 BSD-3-Clause
        click 8.5.1 BSD-3-Clause
        coverage 7.17.3 Apache-2.0
        cython 3.3.1 Apache-2.0
        dask 2026.8.0 BSD-3-Clause
        django 5.2.19 BSD-3-Clause
        docutils 0.23 public domain
        falcon 4.4.0 Apache-2.0
        flask 3.1.3 BSD-3-Clause
        ipython 9.18.1 BSD-3-Clause
        jinja2 3.1.6 BSD-3-Clause
        kombu 5.7.0 BSD-3-Clause
        luigi 3.8.1 Apache-2.0
        mypy 2.4.1 MIT
        networkx 3.6.1 BSD-3-Clause
        peewee 4.5.3 MIT
        pip 26.3 MIT
        pymongo 4.20.0 Apache-2.0
        pyramid 2.1 Repoze (BSD-like)
        pytest 9.2.0 MIT
        scrapy 2.19.0 BSD-3-Clause
        setuptools 84.2.1 MIT
        sphinx 9.0.4 BSD-2-Clause
        sqlalchemy 2.1.9 MIT
        sympy 1.14.0 BSD-3-Clause
        tornado 6.6.1 Apache-2.0
        trio 0.35.0 MIT or Apache-2.0
        twisted 26.10.0 MIT
        urllib3 2.8.0 MIT
        werkzeug 3.1.9 BSD-3-Clause
    """,
    "docstrings": """
        astropy 8.0.2 BSD-3-Clause
        matplotlib 3.11.2 PSF-like
        networkx 3.6.1 BSD-3-Clause
        nltk 3.10.4 Apache-2.0
        numpy 2.4.6 BSD-3-Clause
        pandas 3.1.1 BSD-3-Clause
        scikit-image 0.26.0 BSD-3-Clause
        scikit-learn 1.9.1 BSD-3-Clause
        scipy 1.17.1 BSD-3-Clause
        seaborn 0.13.2 BSD-3-Clause
        statsmodels 0.15.0 BSD-3-Clause
        sympy 1.14.0 BSD-3-Clause
        xarray 2026.9.0 Apache-2.0
    """,
    "api": """
        botocore 1.44.5 Apache-2.0
    """,
    "code": """
        aiohttp 3.14.5 Apache-2.0 and MIT
        alembic 1.20.1 MIT
        arrow 1.4.0 Apache-2.0
        attrs 26.1.0 MIT
        babel 2.18.0 BSD-3-Clause
        bandit 1.9.4 Apache-2.0
        black 26.10.1 MIT
        bokeh 3.9.2 BSD-3-Clause
        boltons 26.2.0 BSD-3-Clause
        bottle 0.13.4 MIT
        celery 5.7.0 BSD-3-Clause
        channels 4.3.2 BSD-3-Clause
        cherrypy 18.10.0 BSD-3-Clause
        click 8.5.1 BSD-3-Clause
        coverage 7.17.3 Apache-2.0
        cryptography 50.0.2 Apache-2.0 or BSD-3-Clause
        distributed 2026.8.0 BSD-3-Clause
        django 5.2.19 BSD-3-Clause
        djangorestframework 3.18.3 BSD-3-Clause
        falcon 4.4.0 Apache-2.0
        fastapi 0.165.0 MIT
        flask 3.1.3 BSD-3-Clause
        gunicorn 27.0.1 MIT
        httpx 0.28.1 BSD-3-Clause
        humanize 4.17.0 MIT
        invoke 3.0.3 BSD-2-Clause
        ipython 9.18.1 BSD-3-Clause
        isort 9.0.2 MIT
        jedi 0.20.1 MIT
        jinja2 3.1.6 BSD-3-Clause
        joblib 1.6.0 BSD-3-Clause
        jupyter_client 8.10.0 BSD-3-Clause
        kombu 5.7.0 BSD-3-Clause
        lark 1.3.1 MIT
        loguru 0.7.3 MIT
        luigi 3.8.1 Apache-2.0
        markdown 3.11.3 BSD-3-Clause
        marshmallow 4.4.0 MIT
        mistune 3.4.0 BSD-3-Clause
        mkdocs 1.6.1 BSD-2-Clause
        more-itertools 11.2.1 MIT
        mypy 2.4.1 MIT
        nbconvert 7.17.2 BSD-3-Clause
        notebook 7.6.5 BSD-3-Clause
        parso 0.8.7 MIT
        peewee 4.5.3 MIT
        pip 26.3 MIT
        ply 3.11 BSD-3-Clause
        poetry 2.5.1 MIT
        prompt_toolkit 3.0.53 BSD-3-Clause
        pydantic 2.14.3 MIT
        pyflakes 4.1.0 MIT
        pygments 2.21.0 BSD-2-Clause
        pymongo 4.20.0 Apache-2.0
        pyparsing 3.3.3 MIT
        pyramid 2.1 Repoze (BSD-like)
        pytest 9.2.0 MIT
        redis 8.1.0 MIT
        requests 2.34.2 Apache-2.0
        rich 15.0.0 MIT
        scrapy 2.19.0 BSD-3-Clause
        setuptools 84.2.1 MIT
        sortedcontainers 2.4.0 Apache-2.0
        sphinx 9.0.4 BSD-2-Clause
        sqlalchemy 2.1.9 MIT
        starlette 1.10.0 BSD-3-Clause
        textual 8.2.8 MIT
        toolz 1.2.0 BSD-3-Clause
        tornado 6.6.1 Apache-2.0
        tox 4.67.15 MIT
        traitlets 5.16.1 BSD-3-Clause
        trio 0.35.0 MIT or Apache-2.0
        twisted 26.10.0 MIT
        typer 0.29.2 MIT
        urllib3 2.8.0 MIT
        virtualenv 21.15.8 MIT
        wagtail 8.0.1 BSD-3-Clause
        websockets 17.4 BSD-3-Clause
        werkzeug 3.1.9 BSD-3-Clause
    """,
}


class Source(NamedTuple):
    role: str
    name: str
    version: str
    licence: str

    @property
    def folder(self) -> Path:
        return CACHE / ("sdists" if self.role == "docs" else "wheels")


SOURCES = [
    Source(role, *line.split(None, 2)) for role, pins in PINS.items() for line in pins.strip().splitlines()
]


def archive_path(source: Source) -> Path | None:
    """The fetched file of a package, None before `fetch`."""
    stem = f"{source.name}-{source.version}".lower().replace("-", "_")
    if not source.folder.exists():
        return None
    for path in sorted(source.folder.iterdir()):
        name = path.name.lower().replace("-", "_")
        if name.startswith(stem) and name[len(stem)] in "._":
            return path
    return None


def fetch() -> None:
    """Downloads what is missing (about 350 MB) with pip, dependencies left out."""
    for source in tqdm(SOURCES, desc="fetch", unit="package"):
        if archive_path(source):
            continue
        # An sdist is not built, but pip runs its build back end for the metadata.
        form = ["--no-binary", source.name] if source.role == "docs" else [
            "--only-binary", ":all:", "--python-version", "3.11", "--platform", "manylinux_2_34_x86_64",
            "--platform", "manylinux_2_28_x86_64", "--platform", "manylinux_2_17_x86_64", "--platform", "any"]
        subprocess.run(
            [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", *form, "--dest", source.folder,
             f"{source.name}=={source.version}"], check=True)

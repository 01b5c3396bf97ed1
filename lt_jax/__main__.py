"""``python -m lt_jax`` is the ``lt-jax`` command."""

from lt_jax.cli.main import main

raise SystemExit(main())

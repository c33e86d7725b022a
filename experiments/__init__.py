"""Studies, benchmarks and measured results; not part of the package."""

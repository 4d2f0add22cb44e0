"""Comparing methods: the same recipe with each, at equal parameters, learning rates and seeds, side by side.

file: the comparison -> variants: runs and grid -> jobs: run folders -> budget: ranks -> processes: `lrft train` ->
measure: what is asked of finished runs -> result: figures -> pages, html: what is read
"""

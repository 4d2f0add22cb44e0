"""Comparison of methods on one recipe, with matched parameters, learning rates and seeds.

file: the comparison -> variants: runs and grid -> jobs: run folders -> budget: ranks -> processes: `lrft train` ->
measure: what is asked of finished runs -> result: figures -> pages, html: what is read
"""

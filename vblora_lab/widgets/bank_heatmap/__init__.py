"""BankHeatmap: which bank vectors each sub-vector mixes. Start with `widget`."""

from vblora_lab.widgets.bank_heatmap.widget import BankHeatmap

__all__ = ["BankHeatmap"]

"""Promotion: whether a challenger may become champion, who said so, and the way back."""

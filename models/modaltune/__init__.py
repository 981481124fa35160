"""ModalTune: modal tokens that talk to a frozen slide encoder between its stages (arXiv 2503.17564)."""

"""Problems that claims of several papers share, and how their parameters are made."""

"""The command line `sp-ray`: one module a noun, no logic of its own. Everything it does, the library does."""

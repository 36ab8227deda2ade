"""Distance of drawn angles from those asked for, and of drawn films from real ones.

Modules: ``ruler`` (landmark network that measures an image), ``faithfulness`` (statistics of asked
against measured angles), ``distances`` (Fréchet and kernel distances of image features),
``figures`` and ``report`` (what a reader sees).
"""

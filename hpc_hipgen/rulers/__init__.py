"""The rulers: networks that find a hip's landmarks in an image, and so measure its Norberg angle.

Modules: ``ruler`` (of a view that is cut around the hips, for the report), ``ruler_training`` and
``few_films`` (what rulers of few films learn from films without landmarks);
``film_ruler`` (of whole films; its ``film_networks``, ``film_ruler_training``, ``film_measuring``,
``film_check`` and ``film_report``); ``lab_ruler`` (the same on a lab's own films) and
``cross_validation``.
"""

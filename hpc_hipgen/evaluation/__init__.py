"""Distance of drawn angles from those asked for, and of drawn films from real ones.

Modules: ``samples`` (what is scored), ``measurements`` (angles and features of it) and
``measured_files`` (their files), ``faithfulness`` (statistics of asked against measured angles) and
``bands`` (of them by how tight the hips are), ``agreement`` (Bland and Altman's limits),
``distances`` (Fréchet and kernel distances of image features), ``diversity``, ``memorisation``,
``film_pixels`` and ``audit`` (copies of training films), ``real_films`` (a row of measured films),
``results`` (all of it in ``metrics.json``) and ``metrics_file`` (which reads it), ``figures``,
``comparison``, ``report`` and ``model_card`` (what a reader sees).
"""

"""What is asked of finished circuits: overlap, controls, evaluation, stability, means."""

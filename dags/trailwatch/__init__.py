"""What the DAGs share. Imported as `trailwatch`: Airflow puts the folder of DAGs on the path."""

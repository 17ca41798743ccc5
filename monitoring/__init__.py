"""WHETHER IT STILL HOLDS: windows of recent scans, drift statistics, and the decision to retrain.

The statistics are pure functions; the policy is a state machine; telling Airflow goes through an
outbox, so that no decision is lost and none is sent twice.
"""

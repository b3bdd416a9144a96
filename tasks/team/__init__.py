"""The services of infra/compose.yaml as plain processes of one machine, on its loopback interface."""

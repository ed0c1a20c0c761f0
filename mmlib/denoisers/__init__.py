"""Whatever maps a noised activation and its noise level to an estimate of the clean one."""

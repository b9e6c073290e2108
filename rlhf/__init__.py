"""Make the policy produce what the reward likes: PPO, its critic and its advantages, launching."""

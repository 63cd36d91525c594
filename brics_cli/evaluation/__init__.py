"""What is measured: the registry of metrics, and their arithmetic on uint8 images and on rows of features.

`registry` (no torch), `reconstruction` (`psnr`, `ssim`: one value per image), `perceptual` (LPIPS), `frechet`
(`FeatureMoments`, `frechet_distance`). Import the module you need: each brings only its own dependencies.
"""

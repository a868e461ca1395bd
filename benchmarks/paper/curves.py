"""CURVES: images of smooth curves through three random points, a reconstruction.

The set of Hinton and Salakhutdinov (2006) is not distributed any more; this draws one
like it.
"""

import numpy as np
import scipy.interpolate

_MARGIN = 2.5  # pixels between the frame and the middle of the stroke
_WIDTH = 0.7  # standard deviation of the pen's profile, in pixels
_DENSE = 200  # points along the cubic between which it is taken as straight
_DOTS = 100  # dots of ink, evenly spaced along the curve, closer than they are wide
_AT_ONCE = 1000  # images, which bounds the memory


def curves(count: int, seed: int, size: int = 28) -> np.ndarray:
  """Images of natural cubic splines through three points with increasing x.

  Args:
    count: number of images.
    seed: of the random points.
    size: height and width of the images.

  Returns:
    ``(count, size, size)`` float32 in ``[0, 1]``.
  """
  rng = np.random.default_rng(seed)
  images, missing = [], count
  while missing > 0:
    paths = _inside(_splines(rng, _AT_ONCE, size), size)[:missing]
    images.append(_ink(paths, size))
    missing -= len(paths)
  return np.concatenate(images)


def _splines(rng: np.random.Generator, count: int, size: int) -> np.ndarray:
  """``(count, dots, 2)`` coordinates, evenly spaced along each curve."""
  low, high = _MARGIN, size - 1 - _MARGIN
  thirds = np.linspace(low, high, 4)
  x = rng.uniform(thirds[:-1], thirds[1:], (count, 3))
  y = rng.uniform(low, high, (count, 3))
  points = np.stack([x, y], -1)
  spline = scipy.interpolate.CubicSpline([0, 1, 2], points, axis=1, bc_type="natural")
  dense = spline(np.linspace(0, 2, _DENSE))
  pieces = np.linalg.norm(np.diff(dense, axis=1), axis=-1)
  length = np.pad(np.cumsum(pieces, axis=1), ((0, 0), (1, 0)))
  even = np.linspace(0, 1, _DOTS)
  return np.stack(
    [
      np.stack(
        [np.interp(even * along[-1], along, path[:, axis]) for axis in (0, 1)], -1
      )
      for along, path in zip(length, dense, strict=True)
    ]
  )


def _inside(paths: np.ndarray, size: int) -> np.ndarray:
  """Those paths that keep the margin to the frame all along."""
  kept = (paths >= _MARGIN) & (paths <= size - 1 - _MARGIN)
  return paths[kept.all((1, 2))]


def _ink(paths: np.ndarray, size: int) -> np.ndarray:
  """Images of the paths drawn with a round pen whose profile is a Gaussian."""
  offsets = paths[:, :, None, :] - np.arange(size)[:, None]
  profile = np.exp(-(offsets**2) / (2 * _WIDTH**2)).astype(np.float32)
  spacing = np.linalg.norm(np.diff(paths, axis=1), axis=-1).mean(1)
  dot = (spacing / (np.sqrt(2 * np.pi) * _WIDTH)).astype(np.float32)
  ink = profile[..., 1].swapaxes(1, 2) @ profile[..., 0]
  return np.clip(dot[:, None, None] * ink, 0, 1)

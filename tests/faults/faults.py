"""The deliberate faults: what is edited, the promise it breaks, and its tests.

`find` stands in exactly one file of the package, once, wherever that file is;
`put` takes its place. `tests` are the files under tests/ that must fail.
"""

from typing import NamedTuple


class Fault(NamedTuple):
  """An edit of the package that at least one default test must notice."""

  name: str
  promise: str
  find: str
  put: str
  tests: tuple[str, ...]


def _fault(name, promise, find, put, tests):
  files = (name if '/' in name else f'test_{name}.py' for name in tests.split())
  return Fault(name, promise, find, put, tuple(files))


FAULTS = (
    # The posterior.
    _fault(
        'logits_without_half',
        'eq 16: the logit is -1/2 the weighted squared distance',
        '-0.5 * weights], axis=-1)',
        '-weights], axis=-1)',
        'posterior quantizers',
    ),
    _fault(
        'half_of_sigma2',
        'eq 18: sigma^2 is the mean square divided by 2 sigma^2',
        'jnp.mean(jnp.square(z_hat - codewords), axis=-1) / two_sigma2',
        'jnp.mean(jnp.square(z_hat - codewords), axis=-1) / 2 / two_sigma2',
        'posterior quantizers',
    ),
    _fault(
        'no_gaussian_noise',
        'training adds Gaussian noise to the codeword',
        'return mean + sigma[..., None] * eps',
        'return mean + 0 * sigma[..., None] * eps',
        'posterior quantizers',
    ),
    _fault(
        'gradient_through_sigma',
        'stop_variance_gradient makes sigma a constant',
        'sigma = jax.lax.stop_gradient(sigma)',
        'sigma = sigma + 0',
        'posterior quantizers',
    ),
    _fault(
        'sigma_without_epsilon',
        'the gradient of sigma is finite where a latent is its codeword',
        'jnp.sqrt(variance + VARIANCE_EPS)',
        'jnp.sqrt(variance)',
        'posterior quantizers',
    ),
    _fault(
        'documented_q_c_of_one_device',
        'aggregated_posterior averages over all devices',
        'return numerics.masked_mean(probs, mask, axis_name=axis_name)',
        'return numerics.masked_mean(probs, mask)',
        'posterior',
    ),
    _fault(
        'temperature_of_relaxation',
        'the relaxed one-hot is a softmax at the given temperature',
        'jax.nn.softmax(scores / temperature)',
        'jax.nn.softmax(scores)',
        'posterior quantizers soft_assignment',
    ),
    _fault(
        'entropy_in_bits',
        'the entropy of the posterior is in nats',
        'return -jnp.sum(probs * jnp.where(probs > 0, log_probs, 0), axis=-1)',
        'return -jnp.sum(probs * jnp.where(probs > 0, log_probs, 0), axis=-1)'
        ' / jnp.log(2)',
        'posterior quantizers',
    ),
    # The objective.
    _fault(
        'kl_sign_of_albo',
        'eq 14 adds beta times the KL',
        'return (latent + beta * kl)',
        'return (latent - beta * kl)',
        'albo quantizers',
    ),
    _fault(
        'kl_left_out_in_training',
        'GM-VQ minimises the ALBO, KL included',
        'albo.regulariser(term, kl, gamma=gamma, beta=beta)',
        'albo.regulariser(term, 0 * kl, gamma=gamma, beta=beta)',
        'quantizers',
    ),
    _fault(
        'kl_reversed',
        'the KL to uniform is log C - H(q)',
        'return jnp.log(q_c.shape[-1]) - _entropy(q_c)',
        'return _entropy(q_c) - jnp.log(q_c.shape[-1])',
        'albo',
    ),
    _fault(
        'perplexity_of_nats',
        'perplexity is 2^H, H in bits',
        'return jnp.exp(_entropy(q_c))',
        'return 2 ** _entropy(q_c)',
        'albo',
    ),
    _fault(
        'albo_without_positions',
        'the regulariser is summed over positions',
        'weight = positions / data_dim',
        'weight = 1 / data_dim',
        'albo',
    ),
    _fault(
        'latent_averaged_over_channels',
        'the latent term is summed over L',
        'return z_hat.shape[-1] * variance',
        'return variance',
        'albo quantizers',
    ),
    _fault(
        'expected_without_spread',
        'the expected latent term includes the spread of the codewords',
        'distance = jnp.sum(jnp.square(z_hat - mean), axis=-1) + spread',
        'distance = jnp.sum(jnp.square(z_hat - mean), axis=-1)',
        'albo quantizers',
    ),
    _fault(
        'aggregated_without_spread',
        'the aggregated latent term includes the spread of the codewords',
        'return jnp.sum(jnp.square(z - mean), axis=-1) + spread',
        'return jnp.sum(jnp.square(z - mean), axis=-1)',
        'albo quantizers',
    ),
    # Numerical conventions.
    _fault(
        'straight_through_lost',
        'the straight-through value has the gradient of its surrogate',
        'return jax.lax.stop_gradient(value) + zero',
        'return jax.lax.stop_gradient(value + zero)',
        'quantizers methods posterior',
    ),
    _fault(
        'ties_to_the_last',
        'of equal scores the first code wins',
        """best[..., None], scores.shape[-1] - 1, index)
  return best, jnp.min(first, axis=-1)""",
        """best[..., None], 0, index)
  return best, jnp.max(first, axis=-1)""",
        'posterior clustering soft_assignment',
    ),
    _fault(
        'half_precision_kept',
        'computations are in float32 at least',
        'dtype = jnp.result_type(jnp.float32, *arrays)',
        'dtype = jnp.result_type(*arrays)',
        'quantizers posterior',
    ),
    _fault(
        'norm_of_zero',
        'a latent of norm 0 has a finite gradient',
        'return jnp.sqrt(jnp.maximum(square, 1e-12))',
        'return jnp.sqrt(square)',
        'methods quantizers',
    ),
    _fault(
        'mean_of_one_device',
        'masked_mean averages over all devices',
        """  count = jnp.sum(mask)
  if axis_name is not None:""",
        """  count = jnp.sum(mask)
  if axis_name is not None and mask.ndim > 9:""",
        'quantizers posterior',
    ),
    # Assignment, plain and in tiles.
    _fault(
        'no_mean_over_devices_before_the_logarithm',
        'training averages q(c) over all devices, then takes the logarithm',
        """  count = jnp.sum(weights)
  if axis_name is not None:""",
        """  count = jnp.sum(weights)
  if axis_name is not None and count is None:""",
        'quantizers soft_assignment',
    ),
    _fault(
        'mask_ignored_in_q_c',
        'masked positions do not count in q(c)',
        'weights, jnp.exp(log_probs), precision=numerics.PRECISION',
        'jnp.ones_like(weights), jnp.exp(log_probs),'
        ' precision=numerics.PRECISION',
        'quantizers soft_assignment',
    ),
    _fault(
        'padding_codes_win',
        'the padding of the last tile is never chosen',
        'logits = jnp.where(codes < tiling.num_codes, logits, NEVER)',
        'logits = logits + 0 * codes',
        'soft_assignment',
    ),
    _fault(
        'kept_gradient_without_its_mean',
        'the slope of the relaxed one-hot is taken about its mean',
        'slope -= (row_sums(one_hot * slope) / norm)[:, None]',
        'slope -= 0 * norm[:, None]',
        'soft_assignment',
    ),
    _fault(
        'ties_between_tiles',
        'of equal scores in two tiles the first code wins',
        """numerics.argmax(perturbed)
    codes = jnp.where(tile_best > best""",
        """numerics.argmax(perturbed)
    codes = jnp.where(tile_best >= best""",
        'soft_assignment',
    ),
    _fault(
        'tiled_gradient_of_entropy',
        'the tiled entropy has the gradient of the plain one',
        'weights[:, None] * slope - d_entropy[:, None] * rise',
        'weights[:, None] * slope + d_entropy[:, None] * rise',
        'soft_assignment',
    ),
    _fault(
        'tiled_gradient_without_temperature',
        'the tiled relaxation has the gradient of the plain one',
        'share * (slope - relaxed_mean[:, None]) * sharpness',
        'share * (slope - relaxed_mean[:, None])',
        'soft_assignment',
    ),
    _fault(
        'tiled_gradient_to_temperature_lost',
        'the temperature has the gradient it has in the plain path',
        'd_temperature -= jnp.sum(_sum(d_perturbed * below)) * sharpness',
        'd_temperature -= 0 * jnp.sum(_sum(d_perturbed * below)) * sharpness',
        'soft_assignment',
    ),
    _fault(
        'only_the_last_tile_is_summed',
        'sums are over the rows of all tiles',
        'sums = jax.tree.map(jnp.add, carry[0], new[0])',
        'sums = jax.tree.map(lambda old, new: new, carry[0], new[0])',
        'soft_assignment quantizers',
    ),
    # Noise.
    _fault(
        'same_noise_on_all_devices',
        'each device has noise of its own',
        'rows += jnp.uint32(num_rows) * jnp.uint32(jax.lax.axis_index',
        'rows += jnp.uint32(0) * jnp.uint32(jax.lax.axis_index',
        'counter_rng quantizers',
    ),
    _fault(
        'noise_of_a_tile_starts_again',
        'columns of a tile have the noise that the whole has there',
        'columns = jnp.uint32(first_column) + jnp.arange',
        'columns = jnp.uint32(0 * first_column) + jnp.arange',
        'counter_rng soft_assignment',
    ),
    _fault(
        'fewer_rounds',
        'the generator is Threefry-2x32 of 13 rounds',
        '_ROUNDS = 13',
        '_ROUNDS = 12',
        'counter_rng',
    ),
    _fault(
        'gumbel_sign',
        'Gumbel noise is -log(-log(u))',
        'return -_log(*_split(-_log(exponent, rest)))',
        'return _log(*_split(-_log(exponent, rest)))',
        'counter_rng',
    ),
    # Codebooks and k-means.
    _fault(
        'kmeans_counts_padding',
        'k-means ignores masked points',
        'weights = mask.astype(points.dtype)',
        'weights = 1 + 0 * mask.astype(points.dtype)',
        'clustering',
    ),
    _fault(
        'empty_clusters_stay',
        'an empty cluster is re-seeded at the farthest point',
        'return jnp.where(empty[:, None], points[worst[rank]], means)',
        'return jnp.where(empty[:, None], centroids, means)',
        'clustering',
    ),
    _fault(
        'nearest_by_a_wrong_norm',
        'nearest_codes minimises the squared distance',
        'jnp.concatenate([keys, -energy / 2], axis=-1)',
        'jnp.concatenate([keys, -energy], axis=-1)',
        'clustering methods',
    ),
    _fault(
        'counts_of_padding',
        'code_counts ignores masked positions',
        'weights = None if mask is None else mask.reshape(-1)'
        '.astype(jnp.float32)',
        'weights = None',
        'clustering quantizers evaluate',
    ),
    # GM-VQ.
    _fault(
        'precision_not_softplus',
        'eq 15: precisions are the softplus of the second head',
        'return z_hat, weight_scale * jax.nn.softplus(raw)',
        'return z_hat, weight_scale * jnp.exp(raw)',
        'quantizers',
    ),
    _fault(
        'aggregate_of_the_batch_ignored',
        "aggregate='batch' gives each position a q(c) of its own",
        "if aggregate == 'positions':",
        "if aggregate != 'none':",
        'quantizers',
    ),
    _fault(
        'noise_that_was_turned_off',
        'gaussian_noise=False gives the codeword itself',
        'if gaussian_noise:',
        'if key is not None:',
        'posterior quantizers composition',
    ),
    _fault(
        'objective_without_positions',
        'the objective of GM-VQ counts the positions of an image',
        'return error + positions / values * quantized.loss',
        'return error + quantized.loss / values',
        'quantizers',
    ),
    # VQ-VAE and moving averages.
    _fault(
        'commitment_swapped',
        'beta is the share of the codebook loss',
        'loss = alpha * (beta * pulled + (1 - beta) * committed)',
        'loss = alpha * ((1 - beta) * pulled + beta * committed)',
        'methods',
    ),
    _fault(
        'codebook_loss_moves_latents',
        'the codebook loss has no gradient to the latents',
        'call.mean_square(jax.lax.stop_gradient(z_hat) - codewords)',
        'call.mean_square(z_hat - codewords)',
        'methods',
    ),
    _fault(
        'ema_without_decay',
        'counts are moving averages with the given decay',
        "counts = decay * state['counts'] + (1 - decay) * counts",
        "counts = decay * state['counts'] + counts",
        'methods',
    ),
    _fault(
        'ema_without_smoothing',
        'counts are smoothed before sums are divided by them',
        "'codebook': sums / smoothed[:, None]",
        "'codebook': sums / counts[:, None]",
        'methods',
    ),
    _fault(
        'ema_moves_at_evaluation',
        'evaluation leaves the moving averages alone',
        'if call.train:\n'
        '      z = numerics.straight_through(codewords, z_hat)\n'
        '      state',
        'if True:\n'
        '      z = numerics.straight_through(codewords, z_hat)\n'
        '      state',
        'methods',
    ),
    _fault(
        'ema_counts_padding',
        'moving averages ignore masked positions',
        'weights = self.mask.reshape(-1).astype(latents.dtype)',
        'weights = (self.mask.reshape(-1) | True).astype(latents.dtype)',
        'quantizers methods',
    ),
    _fault(
        'ema_of_one_device',
        'moving averages are of the latents of all devices',
        'counts, sums = jax.lax.psum((counts, sums), self.axis_name)',
        'counts, sums = counts + 0, sums + 0',
        'quantizers methods devices',
    ),
    _fault(
        'shares_of_one_device',
        'the shares of codes are of all devices',
        'counts = jax.lax.psum(counts, self.axis_name)',
        'counts = counts + 0',
        'quantizers',
    ),
    _fault(
        'codes_of_padding',
        'masked positions have code -1',
        'codes=jnp.where(self.mask, codes, -1)',
        'codes=codes',
        'quantizers',
    ),
    _fault(
        'padding_reaches_gradients',
        'a NaN in a masked position reaches no gradient',
        'return zero_unless(mask, h), mask',
        'return h, mask',
        'quantizers',
    ),
    # Wrappers.
    _fault(
        'replaced_a_step_late',
        'a code is replaced after replace_after steps without use',
        'dead = unused >= replace_after',
        'dead = unused > replace_after',
        'methods',
    ),
    _fault(
        'fresh_codes_not_reported',
        'finish says which entries were replaced',
        'written = jnp.any(old != new, axis=axes, keepdims=True)',
        'written = jnp.any(old != old, axis=axes, keepdims=True)',
        'methods composition',
    ),
    _fault(
        'counter_of_replaced_codes_kept',
        'the counter of a replaced code is reset',
        "'unused': jnp.where(dead, 0, unused),",
        "'unused': unused,",
        'methods',
    ),
    _fault(
        'replacement_without_noise',
        'a replaced code is a latent plus noise',
        'return rows + replace_noise * norm',
        'return rows + 0 * norm',
        'methods',
    ),
    _fault(
        'written_past_the_affine_map',
        'rows are written through the inverse of the affine map',
        'return (rows - shift) / jnp.where(',
        'return rows / jnp.where(',
        'quantizers methods',
    ),
    _fault(
        'momentum_forgotten',
        'alternate optimisation is SGD with momentum',
        'momentum = opt_momentum * momentum + gradient',
        'momentum = 0 * momentum + gradient',
        'methods',
    ),
    _fault(
        'latents_not_normalised',
        'l2: latents are searched on the unit sphere',
        'return jnp.concatenate([numerics.normalize(z_hat), rest], axis=-1)',
        'return jnp.concatenate([z_hat, rest], axis=-1)',
        'methods',
    ),
    _fault(
        'rotation_without_scale',
        'the rotation trick also stretches by the ratio of norms',
        '(norm_z / norm_h, from_, to, middle)',
        '(0 * norm_h + 1, from_, to, middle)',
        'rotation',
    ),
    # Compositions.
    _fault(
        'levels_share_gradients',
        'the loss of a level has no gradient through earlier levels',
        'constant = jax.lax.stop_gradient(z) if inner.straight_through else z',
        'constant = z',
        'composition',
    ),
    _fault(
        'dropped_levels_counted',
        'levels dropped for an example do not count in statistics',
        'mask=mask & (index < kept)',
        'mask=mask',
        'composition',
    ),
    _fault(
        'groups_not_counted',
        'the objective counts each group as a position',
        'return math.prod(shape[1:]), math.prod(data_shape[1:])',
        'return math.prod(shape[1:2]), math.prod(data_shape[1:])',
        'composition',
    ),
    _fault(
        'projection_without_bias',
        'projections are affine',
        'return jnp.matmul(x, kernel, precision=numerics.PRECISION) + bias',
        'return jnp.matmul(x, kernel, precision=numerics.PRECISION) + 0 * bias',
        'composition',
    ),
    # Other methods.
    _fault(
        'sqvae_entropy_sign',
        'SQ-VAE adds the sum of q log q',
        'latent - entropy,',
        'latent + entropy,',
        'methods',
    ),
    _fault(
        'sqvae_without_logarithm',
        'SQ-VAE minimises the logarithm of the squared error',
        'return jnp.log(of_image) / 2 + positions / values * quantized.loss',
        'return of_image / 2 + positions / values * quantized.loss',
        'methods',
    ),
    _fault(
        'gumbel_kl',
        'Gumbel-VQVAE has the KL of each posterior to uniform',
        "kl = call.mean(jnp.log(num_codes) - of_position['entropy'])",
        "kl = call.mean(of_position['entropy'])",
        'methods',
    ),
    _fault(
        'fsq_without_offset',
        'an even number of levels is shifted by half a step',
        'offset = np.where(size % 2, 0.0, 0.5)',
        'offset = np.where(size % 2, 0.0, 0.0)',
        'methods',
    ),
    _fault(
        'fsq_first_channel_slowest',
        'FSQ numbers the grid with the first channel fastest',
        'basis = np.cumprod([1, *levels[:-1]])\n'
        '  num_codes = int(size.prod())\n  half_width',
        'basis = np.cumprod([1, *levels[:0:-1]])[::-1]\n'
        '  num_codes = int(size.prod())\n  half_width',
        'methods',
    ),
    _fault(
        'lfq_diversity_sign',
        'LFQ rewards the entropy of q(c)',
        'loss = entropy_weight * (entropy - diversity * aggregated)',
        'loss = entropy_weight * (entropy + diversity * aggregated)',
        'binary',
    ),
    _fault(
        'bits_last_fastest',
        'binary codes are numbered with the first bit fastest',
        'place = 2 ** jnp.arange(corners.shape[-1], dtype=jnp.int32)',
        'place = 2 ** jnp.arange(corners.shape[-1], dtype=jnp.int32)[::-1]',
        'binary quantizers',
    ),
    _fault(
        'simvq_written_past_its_map',
        'rows are written through the inverse of the linear map',
        "rows = jnp.linalg.solve(params['transform'].T, rows.T).T",
        'rows = rows + 0',
        'simvq',
    ),
    _fault(
        'diveq_direction_has_a_gradient',
        'the direction of DiVeQ is a constant',
        'jax.lax.stop_gradient(towards)',
        'towards',
        'diveq',
    ),
    _fault(
        'kmeans_start_ignores_the_mask',
        'k-means initialisation ignores masked positions',
        'mask=mask.reshape(-1),\n  )\n  return quantizer.write',
        'mask=mask.reshape(-1) | True,\n  )\n  return quantizer.write',
        'composition',
    ),
    # Schedules and the training step.
    _fault(
        'temperature_not_annealed',
        'each step has the temperature of its schedule',
        'tau = temperature(state.step)',
        'tau = temperature(0 * state.step)',
        'train_step trainer',
    ),
    _fault(
        'temperature_ends_early',
        'the temperature reaches its end at the end of training',
        'optax.exponential_decay(start, num_steps, end / start)',
        'optax.exponential_decay(start, num_steps // 2, end / start)',
        'schedules',
    ),
    _fault(
        'warm_up_from_zero',
        'the warm-up starts at a factor of the peak',
        'init_value=warmup_factor * peak',
        'init_value=0 * peak',
        'schedules trainer',
    ),
    _fault(
        'same_noise_in_every_step',
        'each step has noise of its own',
        'jax.random.fold_in(jax.random.wrap_key_data(state.key), state.step)',
        'jax.random.fold_in(jax.random.wrap_key_data(state.key), 0)',
        'train_step',
    ),
    _fault(
        'moments_of_replaced_codes_kept',
        'the moments of replaced codes are zeroed',
        'lambda moment, fresh: _zero_where(fresh, moment)',
        'lambda moment, fresh: moment',
        'optimizer train_step',
    ),
    _fault(
        'flipped_upside_down',
        'augmentation mirrors left to right',
        'return jnp.where(mirrored, images[:, :, ::-1], images)',
        'return jnp.where(mirrored, images[:, ::-1], images)',
        'train_step',
    ),
    _fault(
        'average_remembers_its_start',
        'the moving average of parameters forgets its start',
        'decay = jnp.minimum(decay, (1 + step) / (10 + step))',
        'decay = decay + 0 * step',
        'train_step',
    ),
    _fault(
        'weight_decay_ignored',
        'AdamW decays networks and codebook',
        'weight_decay=config.weight_decay',
        'weight_decay=0 * config.weight_decay',
        'trainer',
    ),
    # Evaluation.
    _fault(
        'evaluation_counts_padding',
        'codes of padded images do not count',
        'jnp.broadcast_to(mask[:, None, None], h.shape[:-1])',
        'jnp.broadcast_to(mask[:, None, None] | True, h.shape[:-1])',
        'evaluate',
    ),
    _fault(
        'errors_of_padding',
        'errors of padded images do not count',
        'sums = {k: jnp.sum(jnp.where(mask, v, 0)) for k, v in sums.items()}',
        'sums = {k: jnp.sum(v) for k, v in sums.items()}',
        'evaluate',
    ),
    _fault(
        'perplexity_of_a_part_of_a_batch',
        'perplexity is averaged over full batches',
        "full = [s for s in sums if s['count'] == batch_size] or sums",
        'full = sums',
        'evaluate',
    ),
    _fault(
        'calibrated_by_a_moving_average',
        'calibrated statistics are those of the calibration images alone',
        'style=network.style._replace(momentum=0.0)',
        'style=network.style._replace(momentum=0.9)',
        'evaluate trainer',
    ),
    # Runs and checkpoints.
    _fault(
        'best_chosen_on_test',
        'the best checkpoint is chosen on the validation split',
        "metrics = experiment.evaluate(state, 'validation').metrics",
        "metrics = experiment.evaluate(state, 'test').metrics",
        'trainer',
    ),
    _fault(
        'place_in_data_not_restored',
        'a run continues with the batch after the last one',
        'batches.set_state(place)',
        'batches.get_state()',
        'trainer checkpoint main',
    ),
    _fault(
        'other_images_accepted',
        'a run does not continue on other images',
        """state, place, step = restored
    experiment.check_origin(place['origin'])""",
        'state, place, step = restored',
        'trainer',
    ),
    _fault(
        'digest_not_checked',
        'a checkpoint whose arrays have changed is not used',
        "if digest(state) != record['state']:",
        "if not record['state']:",
        'checkpoint',
    ),
    _fault(
        'record_not_checked',
        'a checkpoint whose record has changed is not used',
        "if record.pop('seal') != _seal(record):",
        "if not record.pop('seal'):",
        'checkpoint',
    ),
    _fault(
        'worst_checkpoint_restored',
        'restore_best gives the lowest validation error',
        'steps.sort(key=lambda s: (math.isnan(rank[s]), rank[s], -s))',
        'steps.sort(key=lambda s: (math.isnan(rank[s]), -rank[s], -s))',
        'checkpoint trainer',
    ),
    _fault(
        'two_runs_in_one_directory',
        'a work directory belongs to one process at a time',
        'fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)',
        'fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)',
        'trainer main checkpoint encode mistakes',
    ),
    _fault(
        'other_configuration_accepted',
        'a run does not continue under another configuration',
        'if given.get(field) != stored.get(field)'
        ' and field not in FREE_TO_CHANGE',
        'if given.get(field) != stored.get(field)'
        ' and field in FREE_TO_CHANGE',
        'trainer config',
    ),
    # Data.
    _fault(
        'epochs_in_one_order',
        'every epoch has an order of its own',
        'np.random.Philox(key=[self._seed, epoch])',
        'np.random.Philox(key=[self._seed, 0 * epoch])',
        'pipeline',
    ),
    _fault(
        'images_seen_twice',
        'a batch across two epochs takes its rest from the next one',
        'self._epoch(epoch + 1)[:missing]',
        'self._epoch(epoch)[:missing]',
        'pipeline',
    ),
    _fault(
        'crop_at_the_corner',
        'the crop is centred',
        'left, top = (width - side) // 2, (height - side) // 2',
        'left, top = (width - side) // 2, 0',
        'preprocess folder',
    ),
    _fault(
        'orientation_ignored',
        'photographs are turned upright',
        'image = ImageOps.exif_transpose(image)',
        'image = image.copy()',
        'preprocess folder',
    ),
    _fault(
        'images_of_any_type',
        'arrays of images must be uint8',
        'if images.dtype != np.uint8 or not fits:',
        'if not fits:',
        'loading mistakes',
    ),
    # Codes and tokenizers.
    _fault(
        'low_bit_first',
        'codes are packed with the highest bit first',
        'shifts = np.arange(bits - 1, -1, -1)',
        'shifts = np.arange(bits)',
        'bits code_files',
    ),
    _fault(
        'codes_out_of_range',
        'codes of damaged files are refused',
        'if codes.min() < 0 or codes.max() >= self.num_codes:',
        'if codes.min() < 0:',
        'code_files',
    ),
    _fault(
        'any_codes_decoded',
        'decode refuses codes that do not exist',
        'if codes.min() < 0 or codes.max() >= num_codes:',
        'if codes.min() < 0:',
        'tokenizer',
    ),
    _fault(
        'codes_of_another_tokenizer',
        'codes are decoded only by the tokenizer that made them',
        'if made_by != tokenizer.hash:',
        'if not made_by:',
        'decode',
    ),
    _fault(
        'images_of_padding',
        'encode returns the codes of the given images alone',
        'return np.concatenate(done)[: len(batch)]',
        'return np.concatenate(done)',
        'tokenizer',
    ),
    _fault(
        'damaged_export_accepted',
        'an export whose files have changed is refused',
        'if model.hash != known:',
        'if not known:',
        'export tokenizer',
    ),
    _fault(
        'weights_of_another_shape',
        'arrays must fit the configuration',
        'if (given.shape, given.dtype) != (leaf.shape, leaf.dtype):',
        'if given.ndim != len(leaf.shape):',
        'weights export',
    ),
    # Networks, bounds, baselines and the command line.
    _fault(
        'pixels_out_of_place',
        'depth_to_space puts the four channels in two rows of two pixels',
        'x.transpose(0, 1, 3, 2, 4, 5)',
        'x.transpose(0, 1, 4, 2, 3, 5)',
        'networks',
    ),
    _fault(
        'pixels_of_256',
        'pixels are in [0, 1]',
        'return images.astype(jnp.float32) / 255',
        'return images.astype(jnp.float32) / 256',
        'autoencoder evaluate tokenizer',
    ),
    _fault(
        'repair_left_out',
        'the repaired ALBO has the entropy of the noise',
        'albo_repaired=albo + of.noise_entropy',
        'albo_repaired=albo',
        'bounds',
    ),
    _fault(
        'rate_without_half',
        'the rate of a Gaussian is half a logarithm',
        'rate = np.sum(np.maximum(logs - level, 0)) / 2',
        'rate = np.sum(np.maximum(logs - level, 0))',
        'baselines',
    ),
    _fault(
        'samples_depend_on_the_batch',
        'a sample depends on the seed and its number alone',
        'jax.random.key(seed), start + jnp.arange(self.size)',
        'jax.random.key(seed), 0 * start + jnp.arange(self.size)',
        'sampling bounds',
    ),
    _fault(
        'reinforce_without_baseline_of_others',
        'the baseline of REINFORCE leaves out the sample itself',
        'others = payoffs.sum(axis=-1, keepdims=True) - payoffs\n'
        '  advantages = payoffs - others',
        'others = payoffs.sum(axis=-1, keepdims=True)\n'
        '  advantages = payoffs - others',
        'gradient_bias',
    ),
    _fault(
        'mistakes_exit_with_0',
        "a user's mistake ends with exit code 2",
        'if isinstance(error, errors.UserError):\n    return text, 2',
        'if isinstance(error, errors.UserError):\n    return text, 0',
        'main mistakes',
    ),
    _fault(
        'unknown_fields_accepted',
        'a misspelt field of a configuration is refused',
        "elif not field.startswith('quantizer.'):",
        "elif field.startswith('quantizer.') and not given:",
        'config mistakes fuzz',
    ),
    # Placement.
    _fault(
        'mesh_of_one_device',
        'each device tiles its own shard of any mesh',
        'math.prod(size for size, kind in axes if kind != AxisType.Manual)',
        '1 + 0 * len(list(axes))',
        'placement soft_assignment',
    ),
    _fault(
        'explicit_axes_stay',
        'arrays on Explicit axes are accepted',
        'if not mesh.explicit_axes:',
        'if True:',
        'placement quantizers',
    ),
    _fault(
        'tiles_of_the_other_platform',
        'on a CPU tiles fit its caches',
        'cpu, other = (min(n, per_shard) for n in num_rows)',
        'other, cpu = (min(n, per_shard) for n in num_rows)',
        'soft_assignment',
    ),
    _fault(
        'depths_by_device',
        'quantizer dropout is that of the global batch',
        'row_seeds(key, count, axis_name=axis_name)',
        'row_seeds(key, count)',
        'placement',
    ),
)

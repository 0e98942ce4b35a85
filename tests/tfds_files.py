"""The files that `tfds.data_source` reads, written without TensorFlow."""

import io
import json

from PIL import Image


def write(directory, name, version, features, splits):
  """Writes a prepared data set, in array_record.

  Args:
    directory: a data directory of TFDS.
    name: of the data set.
    version: such as `1.0.0`.
    features: a dict of those of TFDS.
    splits: the serialised examples of each, by its name.
  """
  from array_record.python.array_record_module import ArrayRecordWriter
  import tensorflow_datasets as tfds

  folder = directory / name / version
  folder.mkdir(parents=True)
  tfds.features.FeaturesDict(features).save_config(str(folder))
  for split, examples in splits.items():
    path = folder / f'{name}-{split}.array_record-00000-of-00001'
    writer = ArrayRecordWriter(str(path), 'group_size:1')
    for example in examples:
      writer.write(example)
    writer.close()
  info = {
      'fileFormat': 'array_record',
      'name': name,
      'version': version,
      'splits': [
          {
              'name': split,
              'shardLengths': [str(len(examples))],
              'numBytes': '1',
              'filepathTemplate': (
                  '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
              ),
          }
          for split, examples in splits.items()
      ],
  }
  (folder / 'dataset_info.json').write_text(json.dumps(info))


def example(image, form='png', **numbers):
  """Serialises an image and integers as a `tf.train.Example`."""
  from tensorflow_datasets.proto import tf_example_pb2

  buffer = io.BytesIO()
  Image.fromarray(image.squeeze()).save(buffer, form)
  record = tf_example_pb2.Example()
  record.features.feature['image'].bytes_list.value.append(buffer.getvalue())
  for name, number in numbers.items():
    record.features.feature[name].int64_list.value.append(number)
  return record.SerializeToString()

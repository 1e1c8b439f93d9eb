"""Moto as AWS, with what it leaves out of KMS: a key that is disabled or pending deletion is neither used to encrypt nor
to decrypt, with the errors that AWS documents.

    target/test-clients/keys/bin/python tests/clients/keys/aws.py PORT
"""

import sys

from moto.core.exceptions import JsonRESTError
from moto.kms.models import KmsBackend
from moto.server import main


def refuse_by_state(key):
    if key.key_state == "Disabled":
        raise JsonRESTError("DisabledException", f"{key.arn} is disabled.")
    if key.key_state != "Enabled":
        raise JsonRESTError("KMSInvalidStateException", f"{key.arn} is pending deletion.")


encrypt, decrypt = KmsBackend.encrypt, KmsBackend.decrypt


def encrypt_if_enabled(self, key_id, plaintext, encryption_context):
    refuse_by_state(self.keys[self.any_id_to_key_id(key_id)])
    return encrypt(self, key_id, plaintext, encryption_context)


def decrypt_if_enabled(self, ciphertext_blob, encryption_context, key_id=None):
    if key_id is not None:
        refuse_by_state(self.keys[self.any_id_to_key_id(key_id)])
    return decrypt(self, ciphertext_blob, encryption_context, key_id)


KmsBackend.encrypt, KmsBackend.decrypt = encrypt_if_enabled, decrypt_if_enabled
main(["-H", "127.0.0.1", "-p", sys.argv[1]])
